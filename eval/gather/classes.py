"""The classes of generated captions' words: drawn again, since a caption is a function of its number and the seed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from prior.config import Corpus, ScenesCorpus
from prior.corpus.captions import classified_caption, join
from prior.corpus.world import draw, generator
from prior.errors import UserError

# Of the end of a caption there is no word.
END = "end"
CLASSES = ("visual", "function", "stock", "name", "number", END)


class Pieces(NamedTuple):
    """The classified words of a caption, marks of punctuation being words of their own.

    Attributes
    ----------
    ends
        After which character each ends.
    kinds
        The class of each, of `CLASSES`.
    """

    ends: np.ndarray
    kinds: np.ndarray

    def of(self, ends: np.ndarray) -> np.ndarray:
        """The classes of the words that hold the last character before each of `ends`."""
        return self.kinds[np.minimum(np.searchsorted(self.ends, ends), len(self.ends) - 1)]


def pieces(name: str, caption: str, corpus: Corpus) -> Pieces | None:
    """The classified words of the caption with the id `name`; None where a corpus is not generated.

    Raises
    ------
    UserError
        If another caption would be generated under that id.
    """
    if not isinstance(corpus, ScenesCorpus):
        return None
    split, _, index = name.rpartition("-")
    rng = generator(split, int(index), corpus.seed)
    found = classified_caption(draw(split, rng), rng)
    if join(found)[0] != caption:
        raise UserError(
            f"{name}: the corpus holds another caption than this version generates; delete it and make it again"
        )
    lengths = [len(join(found[: count + 1])[0]) for count in range(len(found))]
    return Pieces(np.array(lengths), np.array([kind for _, kind in found]))


def groups(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Which of some tokens or words belong to each group (bool).

    Groups are ``all``; where it is known which are relevant ``relevant`` and ``other``; and ``class:`` with each class
    of words that is there, where these are known.
    """
    found = {"all": np.ones(len(rows), dtype=bool)}
    if len(rows) and rows.relevant.notna().all():
        relevant = rows.relevant.to_numpy(dtype=bool)
        found |= {"relevant": relevant, "other": ~relevant}
    kinds = rows.word_class.astype(object).to_numpy()
    masks = {f"class:{kind}": kinds == kind for kind in CLASSES}
    return found | {name: mask for name, mask in masks.items() if mask.any()}
