"""Tokenizer, base LLM and vision tower: from folders like a hub's, with random weights, or trained from scratch."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prior import config
from prior.errors import UserError

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from prior.documents import Documents

BOS, PAD, IMAGE, EOS = "<s>", "<pad>", "<image>", "</s>"
VISION = ["<vision>", "<vpatch>", "<vrow_sep>", "</vision>"]
LLAMA_LIKE = "a causal LM laid out like Llama, such as Llama, Mistral or Qwen"
MEND = "compare with the model's config.json"


def train_tokenizer(texts: Iterable[str], settings: config.ScratchTokenizer) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, special tokens for pictures included.

    ``</s>`` does not get the id 2: transformers' CLIP text model reads that number as the mark of an old checkpoint and
    then looks for the end of a text in the wrong place.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=[BOS, PAD, IMAGE, EOS, *VISION],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[IMAGE, *VISION],
        clean_up_tokenization_spaces=False,
    )


def hub_tokenizer(source: str) -> PreTrainedTokenizerFast:
    """A tokenizer from a folder like a hub's, with the special tokens for pictures added where they are missing.

    Raises
    ------
    UserError
        If it cannot be loaded, is not a fast one, or has no end-of-sequence token.
    """
    from transformers import PreTrainedTokenizerFast

    if Path(source).is_dir() and not (Path(source) / "tokenizer.json").is_file():
        raise UserError(f"tokenizer: '{source}' is not a fast tokenizer; give one that has a tokenizer.json")
    # Not by AutoTokenizer: the class that tokenizer_config.json names may build another tokenizer from tokenizer.json.
    tokenizer = _from_hub(PreTrainedTokenizerFast, source, "tokenizer")
    if tokenizer.eos_token is None:
        raise UserError(f"tokenizer: '{source}' has no end-of-sequence token; give one that has an eos_token")
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD})
    tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE, *VISION]}, replace_extra_special_tokens=False)
    return tokenizer


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A tokenizer that this pipeline wrote."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def hub_llm(source: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A causal LM from a folder like a hub's, in its own dtype, with an embedding for every token of `tokenizer`.

    Raises
    ------
    UserError
        If it cannot be loaded, is not laid out like Llama, or does not know the tokenizer's own vocabulary.
    """
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = _model_from_hub(AutoModelForCausalLM, source, "llm", "auto")
    problem, remedy = f"llm: '{source}' ({model.config.model_type}) is not supported", f"give {LLAMA_LIKE}"
    with _one_line(problem, remedy):
        usable = _is_llama_like(model)
    if not usable:
        raise UserError(f"{problem}; {remedy}")
    embeddings = model.get_input_embeddings().num_embeddings
    own = 1 + max(number for token, number in tokenizer.get_vocab().items() if token not in (PAD, IMAGE, *VISION))
    if own > embeddings:
        raise UserError(
            f"llm: '{source}' has embeddings for {embeddings} tokens, but the tokenizer has {own}; "
            "give the LLM and the tokenizer of the same model"
        )
    if len(tokenizer) > embeddings:
        torch.manual_seed(0)
        model.resize_token_embeddings(len(tokenizer))
    return model


@torch.no_grad()
def _is_llama_like(model: PreTrainedModel) -> bool:
    """Whether the LVLMs can take a causal LM apart: decoder and head alone compute, packed, what the whole does."""
    from prior.models.attention import document_layout, pack, unpack

    decoder: Any = getattr(model, "model", None)
    head: Any = getattr(model, "lm_head", None)
    if not hasattr(decoder, "embed_tokens") or head is None or head.bias is not None:
        return False
    model.eval()
    ids = torch.arange(4)[None]
    whole = model(ids, use_cache=False).logits
    pack(model)
    parts = head(decoder(ids, use_cache=False, **document_layout([ids.shape[1]])).last_hidden_state)
    unpack(model)
    # A model that is laid out otherwise is further off than the rounding of half precision.
    tolerance = max(1e-3, 4 * torch.finfo(whole.dtype).eps)
    return bool((whole - parts).float().norm() <= tolerance * whole.float().norm())


def new_llm(settings: config.ScratchLLM, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A small Llama with random weights."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(settings.seed)
    return LlamaForCausalLM(
        llm_config(
            settings,
            len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def llm_config(settings: config.ScratchLLM, vocabulary: int, **token_ids: Any) -> LlamaConfig:
    """The configuration of a small Llama; without `token_ids` where only its sizes are asked for."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.max_positions,
        tie_word_embeddings=True,
        # The usual 0.02 suits models that are a hundred times wider; here it would leave attention flat for long.
        initializer_range=settings.hidden_size**-0.5,
        **token_ids,
    )


def vision_config(settings: config.ScratchVision) -> CLIPVisionConfig:
    """The configuration of a small CLIP's vision tower."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(image_size=settings.image_size, patch_size=settings.patch_size, **_clip_layers(settings))


def _clip_layers(settings: config.ScratchVision) -> dict[str, int]:
    """What both towers of a small CLIP have in common."""
    return {
        "hidden_size": settings.hidden_size,
        "intermediate_size": settings.intermediate_size,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "projection_dim": settings.hidden_size,
    }


def hub_vision(source: str, folder: Path) -> None:
    """Save the vision tower, in float32, and the image processor of a CLIP from a folder like a hub's.

    Raises
    ------
    UserError
        If it cannot be loaded, or is no CLIP.
    """
    from transformers import AutoImageProcessor, CLIPVisionModel

    tower = _model_from_hub(CLIPVisionModel, source, "vision", torch.float32)
    processor = _from_hub(AutoImageProcessor, source, "vision", backend="pil")
    tower.save_pretrained(folder)
    processor.save_pretrained(folder)


def check_config(folder: Path, settings: dict[str, Any], what: str) -> None:
    """Refuse a model whose config.json says other than `settings`, some of its keys, do; `what` opens the line.

    Values are compared as transformers reads them, so a default may be left out of config.json. Of a whole CLIP the
    vision tower's are taken.

    Raises
    ------
    UserError
        If a value differs, or one of the two cannot be read.
    """
    from transformers import AutoConfig

    stated = read_config(settings, what)
    # transformers keeps what it does not know without a word.
    with _one_line(f"{what}: config cannot be read", MEND):
        usual = type(stated)().to_dict()
    if unknown := sorted(key for key in settings if key in stated.to_dict() and key not in usual):
        raise UserError(f"{what}: config.{unknown[0]} is no setting of {stated.model_type}; mend or remove it")
    found = _from_hub(AutoConfig, str(folder), what)
    if stated.model_type == "clip_vision_model" and hasattr(found, "vision_config"):
        found = found.vision_config
    for key in settings:
        expected, given = _setting(stated, key), _setting(found, key)
        if given != expected:
            raise UserError(
                f"{what}: config says {key} {expected}, but config.json in '{folder}' says {given}; "
                "mend the preset, or name another model"
            )


def _setting(config: Any, key: str) -> Any:
    """A key of config.json, wherever transformers has put it: under a new name, or into a table (rope_theta)."""
    values = config.to_dict()
    tables = [table for table in values.values() if isinstance(table, dict)]
    name = {"torch_dtype": "dtype"}.get(key, key)
    return next((table[name] for table in [values, *tables] if name in table), None)


def read_config(settings: dict[str, Any], what: str) -> PreTrainedConfig:
    """transformers' configuration of a model from keys of its config.json; `what` opens the line about mistakes.

    Raises
    ------
    UserError
        If transformers does not know the kind of model, or cannot make anything of the keys.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    if (kind := settings.get("model_type")) not in CONFIG_MAPPING:
        raise UserError(f"{what}: transformers knows no model_type '{kind}'; {MEND}")
    with _one_line(f"{what}: config cannot be read", MEND):
        return AutoConfig.for_model(**settings)


def train_vision(
    documents: Documents,
    tokenizer: PreTrainedTokenizerFast,
    settings: config.ScratchVision,
    folder: Path,
    state_dir: Path,
    loaders: int = 0,
) -> None:
    """Train a small CLIP contrastively on pictures and captions; save its vision tower, image processor and log.

    Raises
    ------
    UserError
        If the tokenizer's end of sequence has the id 2 (see `train_tokenizer`).
    """
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from prior.packing import repeat_order
    from prior.training import LOG, Loop, Rows, arguments, resume

    if tokenizer.eos_token_id == 2:
        raise UserError(
            "vision: a CLIP cannot be trained from scratch with a tokenizer whose end-of-sequence token has the id 2; "
            "give a vision tower from a hub or folder, or another tokenizer"
        )
    longest = int(documents.targets.lengths.max())
    size = settings.image_size
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, resample=3
    )
    torch.manual_seed(settings.seed)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=longest,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **_clip_layers(settings),
    )
    joined = CLIPConfig(text_config=text, vision_config=vision_config(settings), projection_dim=settings.hidden_size)
    model = CLIPModel(joined)

    class Contrastive(Loop):
        """CLIP's symmetric contrastive loss over each batch."""

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            outputs = model(**inputs, return_loss=True)
            self.watch("loss", outputs.loss.detach()[None])
            self.tokens_seen += int(inputs["attention_mask"].sum())
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    def batch(indices: Any) -> dict[str, torch.Tensor]:
        ids = [torch.from_numpy(documents.targets[index].astype(np.int64)) for index in indices]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=int(tokenizer.pad_token_id))
        steps = torch.arange(padded.shape[1])[None]
        images = [documents.open_image(index) for index in indices]
        return {
            "input_ids": padded,
            "attention_mask": (steps < torch.tensor([len(item) for item in ids])[:, None]).long(),
            "pixel_values": processor(images, return_tensors="pt")["pixel_values"],
        }

    first = np.random.default_rng([settings.seed, 17]).permutation(len(documents))
    order = repeat_order(first, settings.epochs, settings.seed)
    # A batch of one has no negatives; the remainder of the last batch is left out.
    whole = max(len(order) // settings.batch_size, 1)
    plan = [part.tolist() for part in np.array_split(order[: whole * settings.batch_size], whole)]
    recipe = config.Training(learning_rate=settings.learning_rate, threads=settings.threads)
    loop = Contrastive(
        model=model,
        args=arguments(recipe, state_dir, settings.seed, len(plan), {"dataloader_num_workers": loaders}),
        train_dataset=Rows(plan, batch),
    )
    resume(loop)
    from transformers import CLIPVisionModel

    tower = CLIPVisionModel(model.config.vision_config)
    tower.load_state_dict(model.vision_model.state_dict())
    tower.save_pretrained(folder)
    processor.save_pretrained(folder)
    shutil.copy(state_dir / LOG, folder)


def _model_from_hub(loader: Any, source: str, what: str, dtype: torch.dtype | str) -> Any:
    """A model in `dtype` ("auto": as stored), read from safetensors alone; none may be missing and left random."""
    model, report = _from_hub(loader, source, what, dtype=dtype, use_safetensors=True, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{what}: '{source}' has no weights for {len(missing)} parts of a {type(model).__name__} "
            f"('{missing[0]}' is the first); give a whole checkpoint of the right kind"
        )
    return model


def _from_hub(loader: Any, source: str, what: str, **options: Any) -> Any:
    """Load from a folder. Nothing is fetched here: `prior.hub` does that, at the commit that is locked."""
    if not Path(source).is_dir():
        raise UserError(f"{what}: there is no folder '{source}'; give one that exists")
    with _one_line(f"{what}: '{source}' cannot be loaded", "give a folder or a hub id that exists"):
        return loader.from_pretrained(source, trust_remote_code=False, local_files_only=True, **options)


@contextmanager
def _one_line(problem: str, remedy: str) -> Iterator[None]:
    """Whatever transformers raises about settings and files that others wrote, as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Broken folders raise anything from OSError to SafetensorError.
        said = textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" …")
        raise UserError(f"{problem} ({said}); {remedy}") from None
