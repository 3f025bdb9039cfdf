"""Tokenizer, base LLM and vision tower: from a hub or a local folder, or trained here from scratch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prior import config
from prior.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BOS, PAD, IMAGE, EOS = "<s>", "<pad>", "<image>", "</s>"
VISION = ["<vision>", "<vpatch>", "<vrow_sep>", "</vision>"]


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
    """A tokenizer from a hub or folder, with the special tokens for pictures added where they are missing."""
    from transformers import AutoTokenizer

    tokenizer = _from_hub(AutoTokenizer, source, "tokenizer")
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD})
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [IMAGE, *VISION]}, replace_additional_special_tokens=False
    )
    return tokenizer


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A tokenizer that this pipeline wrote."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def hub_llm(source: str) -> PreTrainedModel:
    """A causal LM from a hub or folder."""
    from transformers import AutoModelForCausalLM

    return _from_hub(AutoModelForCausalLM, source, "llm")


def new_llm(settings: config.ScratchLLM, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A small Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(settings.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            max_position_embeddings=settings.max_positions,
            tie_word_embeddings=True,
            # The usual 0.02 suits models that are a hundred times wider; here it would leave attention flat for long.
            initializer_range=settings.hidden_size**-0.5,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def hub_vision(source: str, folder: Path) -> None:
    """Save the vision tower and the image processor of a CLIP from a hub or folder."""
    from transformers import AutoImageProcessor, CLIPVisionModel

    tower = _from_hub(CLIPVisionModel, source, "vision")
    processor = _from_hub(AutoImageProcessor, source, "vision", backend="pil")
    tower.save_pretrained(folder)
    processor.save_pretrained(folder)


def train_vision(
    records: Any,
    tokenizer: PreTrainedTokenizerFast,
    settings: config.ScratchVision,
    folder: Path,
    state_dir: Path,
    log_file: Path | None,
) -> None:
    """Train a small CLIP contrastively on pictures and captions; save its vision tower and image processor."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from prior.packing import repeat_order, tokenize_captions
    from prior.training import Loop, Rows, arguments, resume

    documents = tokenize_captions(records, tokenizer)
    longest = int(documents.targets.lengths.max())
    size = settings.image_size
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, resample=3
    )
    shape = {
        "hidden_size": settings.hidden_size,
        "intermediate_size": settings.intermediate_size,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "projection_dim": settings.hidden_size,
    }
    torch.manual_seed(settings.seed)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=longest,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    vision = CLIPVisionConfig(image_size=size, patch_size=settings.patch_size, **shape)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=settings.hidden_size))

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
        args=arguments(recipe, state_dir, settings.seed),
        train_dataset=Rows(plan, batch),
        log_file=log_file,
    )
    resume(loop, state_dir, log_file)
    from transformers import CLIPVisionModel

    tower = CLIPVisionModel(model.config.vision_config)
    tower.load_state_dict(model.vision_model.state_dict())
    tower.save_pretrained(folder)
    processor.save_pretrained(folder)


def _from_hub(loader: Any, source: str, what: str, **options: Any) -> Any:
    try:
        return loader.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"{what}: '{source}' cannot be loaded ({first}); give a folder or a hub id that exists"
        ) from None
