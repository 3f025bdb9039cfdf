"""The sizes of a preset's models, counted on models that take no memory (torch's `meta` device)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, CLIPVisionModel, LlavaForConditionalGeneration

from prior import backbones, config
from prior.backbones import IMAGE, LLAMA_LIKE, PAD, VISION, read_config
from prior.errors import UserError
from prior.models.hlvlm import HLVLM, llava_config
from prior.models.ulvlm import ULVLM, ULVLMForConditionalGeneration, ulvlm_config

# What a tokenizer is given where it lacks them, as `prior.backbones.hub_tokenizer` does.
ADDED = (PAD, IMAGE, *VISION)


@dataclass(frozen=True)
class Stack:
    """Transformer layers that are alike.

    Attributes
    ----------
    layers, width, heads
        How many there are, their hidden size, and the heads of each.
    queries, keys
        Width of all queries, and of all keys, of a layer: heads · width of a head.
    inner
        Width inside the MLP.
    gated
        Whether the MLP has a gate (SwiGLU).
    weights
        Of the linear layers of all layers: what every position is multiplied with.
    layer
        All parameters of one layer.
    """

    layers: int
    width: int
    heads: int
    queries: int
    keys: int
    inner: int
    gated: bool
    weights: int
    layer: int


@dataclass(frozen=True)
class Shape:
    """A model as the costs see it.

    Attributes
    ----------
    parameters, trainable
        How many; a matrix that is tied to another counts once.
    decoder, tower
        Layers of the language model, and of the vision tower if there is one.
    read
        Those of the tower's layers whose outputs come to the features that are read: others have no gradients.
    vocabulary
        Rows of the LM head.
    projector
        Weights that each patch is multiplied with on its way to the decoder.
    first
        Weights that each patch is multiplied with at the entrance of the vision tower.
    pixels
        Values of one patch: 3 · patch_size².
    adapters
        Weights of LoRA's adapters.
    trained
        The parts that are trained: projector, llm, vision.
    """

    parameters: int
    trainable: int
    decoder: Stack
    vocabulary: int
    trained: frozenset[str]
    tower: Stack | None = None
    read: int = 0
    projector: int = 0
    first: int = 0
    pixels: int = 0
    adapters: int = 0


def llm_config(preset: config.Preset) -> Any:
    """The configuration of the LLM with the embeddings that pictures add.

    Raises
    ------
    UserError
        If the preset names an LLM without saying what it is.
    """
    source = preset.backbones.llm
    if isinstance(source, config.LLM):
        return backbones.llm_config(source.scratch, _scratch_vocabulary(preset))
    found = _config(source, "llm")
    found = getattr(found, "text_config", found)
    found.vocab_size += len(ADDED)
    return found


def vision_config(preset: config.Preset) -> Any:
    """The configuration of the vision tower; errors as `llm_config`."""
    source = preset.backbones.vision
    if isinstance(source, config.Vision):
        return backbones.vision_config(source.scratch)
    found = _config(source, "vision")
    found = getattr(found, "vision_config", found)
    if found.model_type != "clip_vision_model":
        raise UserError(f"backbones.vision: {found.model_type} is not supported; give a CLIP, clip_vision_model")
    return found


def _scratch_vocabulary(preset: config.Preset) -> int:
    if isinstance(preset.tokenizer, config.Tokenizer):
        return preset.tokenizer.scratch.vocab_size
    vocabulary = getattr(_config(preset.tokenizer, "llm"), "vocab_size", 0)
    return int(vocabulary) + len(ADDED)


def _config(source: str | config.HubModel, what: str) -> Any:
    if isinstance(source, config.HubModel):
        return read_config(source.config, f"backbones.{what}")
    file = Path(source, "config.json")
    if not file.is_file():
        raise UserError(
            f"backbones.{what}: the size of '{source}' is not known before it is fetched; name it with its config: "
            f"`{what}: {{hub: {source}, config: {{model_type: …}}}}`"
        )
    return read_config(json.loads(file.read_text(encoding="utf-8")), f"backbones.{what}")


def reference(preset: config.Preset) -> Any:
    """The reference LLM, without memory."""
    with torch.device("meta"):
        text = llm_config(preset)
        model = AutoModelForCausalLM.from_config(text)
    if not hasattr(getattr(model, "model", None), "layers"):
        raise UserError(f"backbones.llm: {text.model_type} is not supported; give {LLAMA_LIKE}")
    model.requires_grad_(preset.reference.lora is None)
    return model


def lvlm(arch: str, preset: config.Preset) -> Any:
    """An LVLM of a preset, without memory, with gradients on where it is trained."""
    settings = getattr(preset.architectures, arch)
    text = llm_config(preset)
    with torch.device("meta"):
        if arch == "ulvlm":
            solo = ULVLMForConditionalGeneration(ulvlm_config(settings, text))
            solo.tie_weights()
            ULVLM(solo).set_trainable(settings.trainable)
            return solo
        llava = LlavaForConditionalGeneration(llava_config(settings, text, vision_config(preset)))
    llava.tie_weights()
    # The image processor only reads pictures.
    HLVLM(llava, None).set_trainable(settings.trainable)
    return llava


def reference_shape(preset: config.Preset) -> Shape:
    """Sizes of the reference LLM, LoRA's adapters included."""
    model = reference(preset)
    lora = preset.reference.lora
    adapters = adapter_weights(_linears([model.model]), lora.rank) if lora else 0
    count = _count(model.parameters())
    return Shape(
        parameters=count + adapters,
        trainable=adapters if lora else count,
        decoder=_stack(model.config, model.model.layers),
        vocabulary=model.config.vocab_size,
        trained=frozenset(() if lora else ("llm",)),
        adapters=adapters,
    )


def lvlm_shape(arch: str, preset: config.Preset) -> Shape:
    """Sizes of an LVLM."""
    model = lvlm(arch, preset)
    text, inner = model.config.text_config, model.model
    tower, read, first = None, 0, 0
    if arch == "hlvlm":
        vision = model.config.vision_config
        tower = _stack(vision, inner.vision_tower.encoder.layers)
        # The embeddings count as layer 0.
        read = range(tower.layers + 1)[model.config.vision_feature_layer]
        first = inner.vision_tower.embeddings.patch_embedding.weight.numel()
        projector, side = inner.multi_modal_projector, vision.patch_size
    else:
        projector, side = inner.patch_embedding, model.config.patch_size
    return Shape(
        parameters=_count(model.parameters()),
        trainable=_count(part for part in model.parameters() if part.requires_grad),
        decoder=_stack(text, inner.language_model.layers),
        vocabulary=text.vocab_size,
        trained=frozenset(getattr(preset.architectures, arch).trainable),
        tower=tower,
        read=read,
        projector=sum(part.weight.numel() for part in _linears([projector])),
        first=first,
        pixels=3 * side**2,
    )


def adapter_weights(linears: Iterable[nn.Linear], rank: int) -> int:
    """Weights of low-rank adapters (arXiv 2106.09685): rank · (inputs + outputs) for each linear layer."""
    return sum(rank * (part.in_features + part.out_features) for part in linears)


def _stack(settings: Any, layers: nn.ModuleList) -> Stack:
    heads = settings.num_attention_heads
    head = getattr(settings, "head_dim", None) or settings.hidden_size // heads
    return Stack(
        layers=len(layers),
        width=settings.hidden_size,
        heads=heads,
        queries=heads * head,
        keys=(getattr(settings, "num_key_value_heads", None) or heads) * head,
        inner=settings.intermediate_size,
        gated=any("gate_proj" in name for name, _ in layers[0].named_modules()),
        weights=sum(part.weight.numel() for part in _linears(layers)),
        layer=_count(layers[0].parameters()),
    )


def stack_shape(vision: Any) -> Stack:
    """The layers of a vision tower."""
    with torch.device("meta"):
        return _stack(vision, CLIPVisionModel(vision).encoder.layers)


def _linears(modules: Iterable[nn.Module]) -> list[nn.Linear]:
    return [part for module in modules for part in module.modules() if isinstance(part, nn.Linear)]


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(part.numel() for part in parameters)
