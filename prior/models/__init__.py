"""The two architectures behind one small interface.

``Architecture.read`` turns pictures into prefix tokens and features; ``Architecture.collate`` joins the features of
several pictures; ``Architecture.model`` is a transformers model whose ``forward`` takes ``input_ids``,
``pixel_values`` and ``logits_to_keep``. Nothing else needs to know which architecture it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from prior.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Picture:
    """A picture as an architecture sees it.

    Attributes
    ----------
    ids
        The tokens that stand for the picture in the sequence.
    features
        float32: (channels, height, width) for the H-LVLM, (patches, 3·patch²) for the U-LVLM.
    """

    ids: list[int]
    features: torch.Tensor


class Architecture(Protocol):
    """What training, scoring and prediction need of an LVLM."""

    model: PreTrainedModel

    @property
    def reading(self) -> str:
        """Names the way of reading pictures: under one name, every model reads a picture alike."""
        ...

    def read(self, images: list[Image]) -> list[Picture]:
        """Turn RGB pictures into prefix tokens and features."""
        ...

    def prefix_length(self, size: tuple[int, int]) -> int:
        """Prefix tokens of a picture of this (width, height)."""
        ...

    def collate(self, pictures: list[Picture]) -> torch.Tensor:
        """Join the features of several pictures into the model's ``pixel_values``."""
        ...

    def set_trainable(self, trainable: tuple[str, ...]) -> None:
        """Leave gradients on in these parts alone; they are named as in the setting ``trainable``."""
        ...

    def save(self, folder: Path | None, dtype: torch.dtype = torch.float32) -> None:
        """Write the model and what is needed to read pictures as an ordinary Hugging Face folder of this precision.

        The first process writes, so the others need no folder; all have to call it, for each may hold a share of the
        weights.
        """
        ...


def build(
    arch: str,
    settings: Any,
    tokenizer: PreTrainedTokenizerFast,
    llm: Path,
    vision: Path | None,
    seed: int,
    *,
    fsdp: bool = False,
) -> Architecture:
    """A new LVLM from its backbones: the language model keeps its weights, new modules are initialised from `seed`.

    With `fsdp` only the first process has weights, until `prior.training.train` deals them out.
    """
    torch.manual_seed(seed)
    if arch == "hlvlm":
        from prior.models.hlvlm import HLVLM

        assert vision is not None
        return HLVLM.build(settings, tokenizer, llm, vision, fsdp=fsdp)
    from prior.models.ulvlm import ULVLM

    return ULVLM.build(settings, tokenizer, llm, fsdp=fsdp)


def architecture_of(folder: Path) -> str:
    """``hlvlm`` or ``ulvlm``, by the ``config.json`` of a checkpoint folder.

    Raises
    ------
    UserError
        If `folder` holds no checkpoint of either.
    """
    path = folder / "config.json"
    kind = json.loads(path.read_text(encoding="utf-8")).get("model_type") if path.is_file() else None
    if kind not in (known := {"llava": "hlvlm", "prior_ulvlm": "ulvlm"}):
        raise UserError(f"{folder}: holds no checkpoint of an H-LVLM or a U-LVLM; name the folder `final` of a run")
    return known[kind]


def load(folder: Path, dtype: torch.dtype = torch.float32, *, fsdp: bool = False) -> Architecture:
    """An LVLM from a checkpoint folder; see `architecture_of`, and `build` for `fsdp`."""
    if architecture_of(folder) == "hlvlm":
        from prior.models.hlvlm import HLVLM

        return HLVLM.load(folder, dtype, fsdp=fsdp)
    from prior.models.ulvlm import ULVLM

    return ULVLM.load(folder, dtype, fsdp=fsdp)


def freeze(model: torch.nn.Module, parts: dict[str, list[torch.nn.Module]], trainable: tuple[str, ...]) -> None:
    """Leave gradients on only where a trainable part is; `parts` maps the names of settings to modules."""
    model.requires_grad_(False)
    for name in trainable:
        for part in parts[name]:
            part.requires_grad_(True)
