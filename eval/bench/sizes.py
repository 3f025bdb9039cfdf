"""What is measured on: sizes of models, and captions with the lengths that real ones have."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prior.errors import UserError

if TYPE_CHECKING:
    from transformers import LlavaConfig

    from prior.documents import Documents
    from prior.models.hlvlm import HLVLM

BATCH = 32
BOS, EOS, PAD, IMAGE, WORDS_FROM = range(5)


@dataclass(frozen=True)
class Size:
    """An H-LVLM: a Llama with a CLIP tower before it, both with random weights.

    Attributes
    ----------
    tied
        Whether the LM head is the embedding, as in models whose vocabulary is large beside their width (Llama 3.2 1B).
    image_side, patch
        In pixels; a picture becomes (image_side / patch)² tokens.
    matmul
        Rows of the square matrices whose product shows what the machine can reach.
    bf16
        Whether both sides compute under Trainer's bf16.
    """

    name: str
    vocabulary: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate: int
    tied: bool
    vision_width: int
    vision_layers: int
    image_side: int
    patch: int
    matmul: int
    bf16: bool = False

    @property
    def image_tokens(self) -> int:
        return (self.image_side // self.patch) ** 2


_CPU: dict[str, Any] = {"width": 512, "layers": 8, "heads": 8, "key_value_heads": 8, "intermediate": 1376}
_CPU |= {"vision_width": 256, "vision_layers": 4, "image_side": 64, "patch": 16, "matmul": 4096}
_TINY: dict[str, Any] = {"width": 32, "layers": 2, "heads": 2, "key_value_heads": 1, "intermediate": 48}
_TINY |= {"vision_width": 32, "vision_layers": 2, "image_side": 32, "patch": 16, "matmul": 256}
# Llama 3.2 1B behind the tower of LLaVA-1.5 (CLIP ViT-L/14), its pictures at 224 pixels.
_GPU: dict[str, Any] = {"width": 2048, "layers": 16, "heads": 32, "key_value_heads": 8, "intermediate": 8192}
_GPU |= {"vision_width": 1024, "vision_layers": 24, "image_side": 224, "patch": 14, "matmul": 8192}

# The sizes of one machine: the first has a small vocabulary, the second a large one.
SIZES = {
    "cpu": (
        Size("32k", 32_000, tied=False, **_CPU),
        Size("128k", 128_256, tied=True, **_CPU),
    ),
    "gpu": (
        Size("1b-32k", 32_000, tied=False, bf16=True, **_GPU),
        Size("1b-128k", 128_256, tied=True, bf16=True, **_GPU),
    ),
    "tiny": (
        Size("300", 300, tied=False, **_TINY),
        Size("500", 500, tied=True, **_TINY),
    ),
}


def find(name: str) -> Size:
    """The size of this name."""
    return next(size for sizes in SIZES.values() for size in sizes if size.name == name)


def model_config(size: Size) -> LlavaConfig:
    """The model's configuration; its ``text_config`` is the language model's."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    text = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        intermediate_size=size.intermediate,
        tie_word_embeddings=size.tied,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    vision = CLIPVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=4 * size.vision_width,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=max(2, size.vision_width // 64),
        image_size=size.image_side,
        patch_size=size.patch,
    )
    return LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        image_seq_length=size.image_tokens,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=size.tied,
        pad_token_id=PAD,
    )


def build(size: Size) -> HLVLM:
    """The model, its vision tower frozen as in pre-training."""
    import torch
    from transformers import LlavaForConditionalGeneration
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from prior.models.hlvlm import HLVLM

    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(model_config(size))
    side = size.image_side
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    lvlm = HLVLM(model, processor)
    lvlm.set_trainable(("projector", "llm"))
    return lvlm


def captions() -> tuple[list[list[str]], str]:
    """Captions as lists of words, and where they are from.

    ``PRIOR_PHOTOS`` names a folder with a ``captions.csv``, as for the preset `photos`; without it the captions of the
    generated world are taken.

    Raises
    ------
    UserError
        If that file is not there or has no such column.
    """
    if folder := os.environ.get("PRIOR_PHOTOS"):
        path = Path(folder, "captions.csv")
        if not path.is_file():
            raise UserError(f"PRIOR_PHOTOS: there is no file {path}; name a folder that has one")
        with open(path, encoding="utf-8", newline="") as stream:
            rows = csv.DictReader(stream)
            if "caption" not in (rows.fieldnames or []):
                raise UserError(f"PRIOR_PHOTOS: {path} has no column `caption`; name a folder whose file has")
            found = [row["caption"].split() for row in rows]
        return [words for words in found if words], Path(folder).resolve().name
    from prior.corpus.scenes import pairs

    return [pair["caption"].split() for pair in pairs("train", 0, 500, 0, 16)], "generated scenes"


def documents(size: Size, count: int, times: int = 1) -> Documents:
    """`count` captions with pictures, several times over, a token a word: the commonest have the lowest numbers."""
    from PIL import Image

    from prior.documents import Documents, Ragged

    texts, _ = captions()
    rng = np.random.default_rng(0)
    chosen = [texts[index] for index in rng.integers(len(texts), size=count)] * times
    rank = {
        word: place for place, (word, _) in enumerate(Counter(word for text in texts for word in text).most_common())
    }
    room = size.vocabulary - WORDS_FROM
    targets = Ragged.of([[*(WORDS_FROM + rank[word] % room for word in text), EOS] for text in chosen], np.int32)
    buffers = [io.BytesIO() for _ in range(BATCH)]
    for buffer in buffers:
        Image.fromarray(rng.integers(0, 256, (size.image_side,) * 2 + (3,), dtype=np.uint8)).save(buffer, "PNG")
    logprob = -rng.exponential(1.0, int(targets.lengths.sum())).astype(np.float32)
    return Documents(
        [str(number) for number in range(len(chosen))],
        targets,
        ref_logprob=targets.beside(logprob),
        image=lambda index: buffers[index % BATCH].getvalue(),
    )
