"""U-LVLM: one causal LM that reads linearly embedded patches (SOLO, arXiv 2407.06438, `Yangyi-Chen/SOLO`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

from prior import config
from prior.models import Picture, freeze
from prior.models.ulvlm_config import ULVLMConfig
from prior.models.weights import adopt, export, held_here, hollow, load_llm, release

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerFast

VISION_START, PATCH, ROW_END, VISION_END = "<vision>", "<vpatch>", "<vrow_sep>", "</vision>"
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)


class ULVLMPreTrainedModel(PreTrainedModel):
    config_class = ULVLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True


class ULVLMModel(ULVLMPreTrainedModel):
    """The causal transformer with its patch embedding."""

    def __init__(self, config: ULVLMConfig) -> None:
        super().__init__(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, config.text_config.hidden_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            is_patch = input_ids == self.config.patch_token_id
            if int(is_patch.sum()) != len(pixel_values):
                raise ValueError(f"{int(is_patch.sum())} patch tokens, but {len(pixel_values)} patches were given")
            # Under autocast the embedding computes in half precision.
            embedded = self.patch_embedding(pixel_values.to(inputs_embeds.dtype)).to(inputs_embeds.dtype)
            # The embedding of <vpatch> plus W·patch, as in SOLO.
            inputs_embeds = inputs_embeds.index_put((is_patch,), embedded, accumulate=True)
        return self.language_model(inputs_embeds=inputs_embeds, **kwargs)


class ULVLMForConditionalGeneration(ULVLMPreTrainedModel, GenerationMixin):
    """A causal LM over text and patches. ``pixel_values`` has shape (patches of all pictures, 3·patch_size²)."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: ULVLMConfig) -> None:
        super().__init__(config)
        self.model = ULVLMModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        outputs = self.model(input_ids=input_ids, pixel_values=pixel_values, **kwargs)
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


AutoModelForImageTextToText.register(ULVLMConfig, ULVLMForConditionalGeneration)


def patched_size(width: int, height: int, patch_size: int, max_side: int) -> tuple[int, int]:
    """The size a picture is scaled to: long side min(⌈L/p⌉·p, max_side), short side in proportion, rounded up.

    At least one patch in each direction, where SOLO's formula can give none for extreme aspect ratios.
    """
    long, short = max(width, height), min(width, height)
    scaled_long = min(math.ceil(long / patch_size) * patch_size, max_side)
    scaled_short = max(math.ceil(short * scaled_long / long / patch_size) * patch_size, patch_size)
    return (scaled_long, scaled_short) if width >= height else (scaled_short, scaled_long)


def patch_grid(width: int, height: int, patch_size: int, max_side: int) -> tuple[int, int]:
    """Rows and columns of the patches that a picture is cut into."""
    columns, rows = (side // patch_size for side in patched_size(width, height, patch_size, max_side))
    return rows, columns


def picture_positions(rows: int, columns: int) -> int:
    """Tokens that stand for a picture: its patches, a separator between rows, a mark at each end."""
    return rows * columns + rows + 1


def patches(image: Image, patch_size: int, max_side: int) -> tuple[np.ndarray, int, int]:
    """Cut a picture into normalised patches, row by row.

    Returns
    -------
    (patches, rows, columns)
        float32 array of shape (rows·columns, 3·patch_size²), each patch flattened (channel, height, width).
    """
    size = patched_size(*image.size, patch_size, max_side)
    if image.size != size:
        image = image.resize(size)
    pixels = (np.asarray(image.convert("RGB"), dtype=np.float32) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    rows, columns = patch_grid(*image.size, patch_size, max_side)
    cut = pixels.reshape(rows, patch_size, columns, patch_size, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(cut).reshape(rows * columns, -1), rows, columns


def ulvlm_config(settings: config.ULVLM, text: PreTrainedConfig, **token_ids: Any) -> ULVLMConfig:
    """The configuration of an LLM that reads patches; without `token_ids` where only sizes are asked for."""
    return ULVLMConfig(
        text_config=text,
        patch_size=settings.patch_size,
        max_side=settings.max_side,
        tie_word_embeddings=text.tie_word_embeddings,
        **token_ids,
    )


@dataclass
class ULVLM:
    """The U-LVLM with its way of reading pictures."""

    model: ULVLMForConditionalGeneration

    @classmethod
    def build(
        cls, settings: config.ULVLM, tokenizer: PreTrainedTokenizerFast, llm: Path, *, fsdp: bool = False
    ) -> ULVLM:
        """Give an LLM a freshly initialised patch embedding."""
        text = AutoConfig.from_pretrained(llm, dtype=torch.float32)
        start, patch, row_end, end = tokenizer.convert_tokens_to_ids([VISION_START, PATCH, ROW_END, VISION_END])
        joined = ulvlm_config(
            settings,
            text,
            vision_start_token_id=start,
            patch_token_id=patch,
            row_end_token_id=row_end,
            vision_end_token_id=end,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        if held_here(fsdp):
            model = ULVLMForConditionalGeneration(joined)
            # Before the real weights come the random ones go: no time sees both.
            for part in (model.model.language_model, model.lm_head):
                release(part)
            language = load_llm(llm)
            adopt(model.model.language_model, language.model)
            adopt(model.lm_head, language.lm_head)
        else:
            model = hollow(lambda: ULVLMForConditionalGeneration(joined))
        lvlm = cls(model)
        lvlm.set_trainable(settings.trainable)
        return lvlm

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32, *, fsdp: bool = False) -> ULVLM:
        if held_here(fsdp):
            return cls(ULVLMForConditionalGeneration.from_pretrained(folder, dtype=dtype))
        return cls(hollow(lambda: ULVLMForConditionalGeneration(ULVLMConfig.from_pretrained(folder))))

    @property
    def reading(self) -> str:
        return f"ulvlm {self.model.config.patch_size} {self.model.config.max_side}"

    def read(self, images: list[Image]) -> list[Picture]:
        """``<vision>``, rows of ``<vpatch>`` joined by ``<vrow_sep>``, ``</vision>``; features (patches, 3·patch²)."""
        settings = self.model.config
        pictures = []
        for image in images:
            features, rows, columns = patches(image, settings.patch_size, settings.max_side)
            row = [settings.patch_token_id] * columns
            body = row + ([settings.row_end_token_id] + row) * (rows - 1)
            ids = [settings.vision_start_token_id, *body, settings.vision_end_token_id]
            pictures.append(Picture(ids, torch.from_numpy(features)))
        return pictures

    def prefix_length(self, size: tuple[int, int]) -> int:
        return picture_positions(*patch_grid(*size, self.model.config.patch_size, self.model.config.max_side))

    def collate(self, pictures: list[Picture]) -> torch.Tensor:
        return torch.cat([picture.features for picture in pictures])

    def set_trainable(self, trainable: tuple[str, ...]) -> None:
        inner = self.model.model
        llm = [inner.language_model, self.model.lm_head]
        freeze(self.model, {"projector": [inner.patch_embedding], "llm": llm}, trainable)

    def save(self, folder: Path | None, dtype: torch.dtype = torch.float32) -> None:
        export(self.model, folder, dtype)
