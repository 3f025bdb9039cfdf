"""Settings of corpora: a generated world, a folder of captioned pictures, a WebDataset."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from prior.config.fields import Count, FolderPath, Fraction, Positive, Settings, kind_tag
from prior.config.patterns import expand


class ScenesCorpus(Settings):
    """A generated world whose captions say which of their words the picture decides."""

    kind: Literal["scenes"] = "scenes"
    train: Positive = 12_000
    val: Positive = 500
    text_only: Positive = 30_000
    image_size: Annotated[int, Field(ge=16)] = 48
    seed: Count = 0
    shards: Positive = 1


class FolderCorpus(Settings):
    """A folder of pictures with a file of captions: CSV rows ``image,caption``, COCO's JSON or LLaVA's.

    The training captions are prepared and scored in `shards`, each by a job of its own.
    """

    kind: Literal["folder"] = "folder"
    shards: Positive = 1
    folder: FolderPath
    captions: str = "captions.csv"
    images: str = "images"
    text_only: str | None = None
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    max_bad_fraction: Fraction = 0.0
    max_captions: Positive | None = None


class WebDatasetCorpus(Settings):
    """Captioned pictures in tar files, as `img2dataset` writes them, from a hub or a folder.

    Attributes
    ----------
    source
        A dataset of the hub, or a folder.
    train, val
        Names of tar files in it, with ranges as in ``cc12m-train-{0000..0599}.tar``.
    shards
        The training files are prepared and scored in so many parts, each by a job of its own.
    """

    kind: Literal["webdataset"] = "webdataset"
    source: FolderPath
    train: Annotated[str, Field(min_length=1)]
    val: Annotated[str, Field(min_length=1)]
    shards: Positive = 1
    max_bad_fraction: Fraction = 0.05

    @model_validator(mode="after")
    def _files(self) -> WebDatasetCorpus:
        train, val = expand(self.train), expand(self.val)
        if self.shards > len(train):
            raise ValueError(f"shards: {self.shards} cannot be made of {len(train)} files; ask for fewer")
        if both := set(train) & set(val):
            raise ValueError(f"val: {min(both)} is among the training files; hold out another one")
        return self


Corpus = Annotated[
    Annotated[ScenesCorpus, Tag("<scenes>")]
    | Annotated[FolderCorpus, Tag("<folder>")]
    | Annotated[WebDatasetCorpus, Tag("<webdataset>")],
    Discriminator(kind_tag),
]


def shard_names(corpus: Corpus, split: str) -> list[str]:
    """What the shards of a split are called, in their order."""
    return [f"{number:04d}" for number in range(corpus.shards if split == "train" else 1)]
