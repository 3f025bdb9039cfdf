"""Documents: tokenised captions, texts and exchanges, in memory or memory-mapped, with the pictures they belong to.

A document is ``<s> [picture] text </s>``. All tokens of a caption carry a label, end of sequence included; of an
exchange only the answers do.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from prior.errors import CorpusTooSmall
from prior.hashing import uniform

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from prior.models import Architecture, Picture

# Pictures as models see them are kept in memory up to this size, and read anew beyond it.
KEPT_BYTES = 2**29


@dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths, one after the other in flat arrays.

    Attributes
    ----------
    parts
        (values, offsets) each: sequence i of a part is ``values[offsets[i]:offsets[i + 1]]``. The arrays may be
        memory-mapped, and stay on the disk until they are asked for.
    """

    parts: tuple[tuple[np.ndarray, np.ndarray], ...]

    @classmethod
    def of(cls, sequences: Iterable[Sequence[Any]], dtype: Any) -> Ragged:
        sequences = list(sequences)
        offsets = np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences], dtype=np.int64)])
        flat = np.fromiter((value for sequence in sequences for value in sequence), dtype=dtype, count=int(offsets[-1]))
        return cls(((flat, offsets),))

    @classmethod
    def join(cls, several: Iterable[Ragged]) -> Ragged:
        """The sequences of all, in order; nothing is copied."""
        return cls(tuple(part for ragged in several for part in ragged.parts))

    def beside(self, flat: np.ndarray) -> Ragged:
        """The same lengths over other values, given flat in the same order."""
        ends = np.cumsum([0, *(int(offsets[-1] - offsets[0]) for _, offsets in self.parts)])
        parts = (flat[ends[k] : ends[k + 1]] for k in range(len(self.parts)))
        return Ragged(tuple((part, offsets - offsets[0]) for part, (_, offsets) in zip(parts, self.parts, strict=True)))

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.concatenate([np.empty(0, np.int64), *(np.diff(offsets) for _, offsets in self.parts)])

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each sequence begins and ends in `values`."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @property
    def values(self) -> np.ndarray:
        """All values, flat; where there are several parts, this copies them into memory."""
        flat = [values[offsets[0] : offsets[-1]] for values, offsets in self.parts]
        return flat[0] if len(flat) == 1 else np.concatenate(flat)

    @cached_property
    def _first(self) -> np.ndarray:
        """The number of each part's first sequence."""
        return np.cumsum([0, *(len(offsets) - 1 for _, offsets in self.parts)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        index = range(len(self))[index]
        part = int(np.searchsorted(self._first, index, "right")) - 1
        values, offsets = self.parts[part]
        place = index - self._first[part]
        return values[offsets[place] : offsets[place + 1]]

    def gather(self, indices: Iterable[int]) -> np.ndarray:
        """The values of some sequences, flat, in the order of `indices`."""
        found = [self[index] for index in indices]
        return np.concatenate(found) if found else np.empty(0, self.parts[0][0].dtype)


class Pictures:
    """Pictures as architectures see them, read once for all epochs and runs of a process while there is room."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int], Picture] = {}
        self.room = KEPT_BYTES

    def read(
        self, architecture: Architecture, indices: Sequence[int], open_image: Callable[[int], Image.Image]
    ) -> list[Picture]:
        """The pictures of `indices`; those that are not kept yet are opened."""
        key = architecture.reading
        missing = [index for index in indices if (key, index) not in self.kept]
        fresh = architecture.read([open_image(index) for index in missing]) if missing else []
        found = dict(zip(missing, fresh, strict=True))
        for index, picture in found.items():
            if (size := picture.features.nbytes) <= self.room:
                self.kept[key, index] = picture
                self.room -= size
        return [found[index] if index in found else self.kept[key, index] for index in indices]


@dataclass(frozen=True)
class Documents:
    """Tokenised documents; what is known of the tokens lies beside them, in sequences of the same lengths.

    Attributes
    ----------
    ids
        One name per document.
    targets
        int32 tokens after the picture, end of sequence included.
    labelled
        bool beside `targets`: whether a token carries a label; None where all do.
    relevant
        float32 beside `targets`: 1 where the picture decides the token, 0 where not, NaN where unknown; or None.
    ref_logprob
        float32 beside `targets`: log p_r; None where the objective does not need it.
    image
        Encoded bytes of a document's picture; None for text without pictures.
    sizes
        (documents, 2): width and height of the pictures; None where they are to be read from the pictures.
    """

    ids: Sequence[str]
    targets: Ragged
    labelled: Ragged | None = None
    relevant: Ragged | None = None
    ref_logprob: Ragged | None = None
    image: Callable[[int], bytes] | None = field(default=None, compare=False)
    sizes: np.ndarray | None = field(default=None, compare=False, repr=False)
    _read_sizes: dict[int, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)
    _pictures: Pictures = field(default_factory=Pictures, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def labels(self) -> np.ndarray:
        """How many labels each document has."""
        if self.labelled is None:
            return self.targets.lengths
        return np.add.reduceat(self.labelled.values.astype(np.int64), self.labelled.offsets[:-1])

    def without_pictures(self) -> Documents:
        return replace(self, image=None)

    def open_image(self, index: int) -> Image.Image:
        assert self.image is not None
        return Image.open(io.BytesIO(self.image(index))).convert("RGB")

    def pictures(self, architecture: Architecture, indices: Sequence[int]) -> list[Picture]:
        """The documents' pictures as an architecture sees them."""
        return self._pictures.read(architecture, indices, self.open_image)

    def image_size(self, index: int) -> tuple[int, int]:
        """(width, height) of a picture, if need be read from its header once for all runs over these documents."""
        if self.sizes is not None:
            return int(self.sizes[index][0]), int(self.sizes[index][1])
        if index not in self._read_sizes:
            assert self.image is not None
            self._read_sizes[index] = image_size(self.image(index))
        return self._read_sizes[index]


def image_size(content: bytes) -> tuple[int, int]:
    """(width, height) of an encoded picture, from its header alone."""
    with Image.open(io.BytesIO(content)) as image:
        return image.size


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], offsets: bool = True) -> Any:
    """``input_ids`` and ``offset_mapping`` of texts: what looks like a special token in them is ordinary text."""
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=offsets)


def tokenize_captions(
    records: Any, tokenizer: PreTrainedTokenizerFast, image: bool = True, limit: int | None = None
) -> Documents:
    """Tokenise a caption corpus: columns ``id``, ``caption``, and optionally ``image`` and ``relevant``.

    A token is image-related if its characters overlap one of the caption's relevant spans.
    """
    count = len(records) if limit is None else min(limit, len(records))
    columns = [name for name in ("id", "caption", "relevant") if name in records.column_names]
    table = records.select_columns(columns)[:count]
    encoded = encode(tokenizer, table["caption"])
    targets = [[*ids, tokenizer.eos_token_id] for ids in encoded["input_ids"]]
    spans = table.get("relevant") or [None] * count
    relevant = [
        [*_overlaps(offsets, span), 0.0] if span is not None else [np.nan] * (len(offsets) + 1)
        for offsets, span in zip(encoded["offset_mapping"], spans, strict=True)
    ]
    pictures = records.select_columns(["image"]) if image else None
    return Documents(
        ids=list(table["id"]),
        targets=Ragged.of(targets, np.int32),
        relevant=Ragged.of(relevant, np.float32),
        image=(lambda index: pictures[index]["image"]) if pictures is not None else None,
    )


def tokenize_texts(ids: Sequence[str], texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Documents:
    """Tokenise plain texts, every token of which is a target."""
    encoded = encode(tokenizer, texts)["input_ids"]
    return Documents(list(ids), Ragged.of([[*tokens, tokenizer.eos_token_id] for tokens in encoded], np.int32))


def tokenize_exchanges(
    ids: Sequence[str],
    exchanges: Sequence[Sequence[tuple[str, str]]],
    tokenizer: PreTrainedTokenizerFast,
    image: Callable[[int], bytes] | None,
) -> Documents:
    """Tokenise prompts and answers, one pair or several a document; only answers, each with its end, carry labels."""
    tokens: list[Ragged] = []
    labelled: list[Ragged] = []
    # As lists of Python's own numbers all of them at once would take ten times the room.
    for start in range(0, len(exchanges), 4096):
        part = exchanges[start : start + 4096]
        texts = [text for turns in part for turn in turns for text in turn]
        encoded = iter(encode(tokenizer, texts, offsets=False)["input_ids"])
        pieces = [
            [piece for _ in turns for piece in (next(encoded), [*next(encoded), tokenizer.eos_token_id])]
            for turns in part
        ]
        tokens.append(Ragged.of([[token for piece in turns for token in piece] for turns in pieces], np.int32))
        marks = [[place % 2 == 1 for place, piece in enumerate(turns) for _ in piece] for turns in pieces]
        labelled.append(Ragged.of(marks, bool))
    return Documents(list(ids), Ragged.join(tokens), labelled=Ragged.join(labelled), image=image)


def concatenate(first: Documents, second: Documents) -> Documents:
    """Both sets of text documents, one after the other; relevance is NaN where one of them does not know it."""
    relevant = None
    if first.relevant is not None or second.relevant is not None:
        relevant = Ragged.join(
            part.targets.beside(np.full(int(part.targets.lengths.sum()), np.nan, np.float32))
            if part.relevant is None
            else part.relevant
            for part in (first, second)
        )
    return Documents([*first.ids, *second.ids], Ragged.join([first.targets, second.targets]), relevant=relevant)


def select(documents: Documents, indices: np.ndarray) -> Documents:
    """The targets of some of the documents, in the given order."""
    chosen = [documents.targets[index].tolist() for index in indices]
    return Documents([documents.ids[index] for index in indices], Ragged.of(chosen, np.int32))


def head(documents: Documents, count: int) -> Documents:
    """The first documents, copied into memory."""

    def first(ragged: Ragged | None) -> Ragged | None:
        if ragged is None:
            return None
        lengths = ragged.lengths[:count]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return Ragged(((ragged.gather(range(len(lengths))), offsets),))

    targets = first(documents.targets)
    assert targets is not None
    return replace(
        documents,
        ids=documents.ids[:count],
        targets=targets,
        labelled=first(documents.labelled),
        relevant=first(documents.relevant),
        ref_logprob=first(documents.ref_logprob),
        sizes=None if documents.sizes is None else documents.sizes[:count],
    )


def nested_subset(documents: Documents, tokens: int, seed: int) -> np.ndarray:
    """The documents of one data scale, in training order.

    A seed gives each document a place by the SHA-256 of its id; a scale is the shortest beginning of that order that
    holds `tokens` target tokens. So each scale contains the smaller ones, and a document keeps its place when others
    come or go.

    Raises
    ------
    CorpusTooSmall
        If they hold fewer tokens.
    """
    order = np.argsort(np.fromiter((uniform(f"{seed}:{name}") for name in documents.ids), float), kind="stable")
    reached = np.cumsum(documents.targets.lengths[order])
    if (total := int(documents.targets.lengths.sum())) < tokens:
        raise CorpusTooSmall(f"{tokens} caption tokens are asked for, but the corpus holds {total}")
    return order[: int(np.searchsorted(reached, tokens)) + 1]


def _overlaps(offsets: Sequence[tuple[int, int]], spans: Sequence[Sequence[int]]) -> list[float]:
    """Whether each [start, end) range of characters shares one with any span: 1.0 or 0.0."""
    ends = np.array([end for _, end in offsets] or [0])
    marked = np.zeros(int(ends[-1]) + 1, dtype=np.int64)
    for start, end in spans:
        marked[start + 1 : end + 1] = 1
    before = np.cumsum(marked)
    starts = np.array([start for start, _ in offsets] or [0])
    return (before[ends] > before[starts]).astype(float).tolist()[: len(offsets)]
