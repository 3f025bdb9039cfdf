"""The splits of a preset's corpus, shard by shard: what is generated, read from a folder, or read from tar files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from prior.config import Corpus, FolderCorpus, ScenesCorpus, WebDatasetCorpus
from prior.config.patterns import expand


def tar_files(corpus: WebDatasetCorpus, split: str, shard: int) -> list[str]:
    """The names of the tar files that one shard of a split is read from."""
    if split == "val":
        return expand(corpus.val)
    return [str(name) for name in np.array_split(expand(corpus.train), corpus.shards)[shard]]


def pairs(
    corpus: Corpus, split: str, shard: int, files: Path | None = None
) -> tuple[Iterable[Mapping[str, object]], int | None]:
    """The captioned pictures of one shard of ``train`` or ``val``, and how many there are if that is known beforehand.

    `files` is the folder where tar files lie.
    """
    if isinstance(corpus, ScenesCorpus):
        from prior.corpus import scenes

        total = getattr(corpus, split)
        parts = corpus.shards if split == "train" else 1
        start, stop = total * shard // parts, total * (shard + 1) // parts
        return scenes.pairs(split, start, stop, corpus.seed, corpus.image_size), stop - start
    if isinstance(corpus, FolderCorpus):
        from prior.corpus.readers import read_folder

        return getattr(read_folder(corpus, shard, corpus.shards), split), None
    from prior.corpus.webdataset import read_tars

    assert files is not None
    return read_tars([files / name for name in tar_files(corpus, split, shard)], corpus.max_bad_fraction), None


def texts(corpus: ScenesCorpus | FolderCorpus) -> tuple[Iterable[Mapping[str, object]], int | None]:
    """The texts without pictures, and how many there are if that is known beforehand."""
    if isinstance(corpus, ScenesCorpus):
        from prior.corpus import scenes

        return scenes.texts(0, corpus.text_only, corpus.seed), corpus.text_only
    from prior.corpus.readers import read_folder

    return read_folder(corpus, 0, corpus.shards).text_only, None
