"""Documents to packed rows: whole documents laid end to end, positions restarting at each, no padding.

A document is ``<s> [picture] [prompt] target </s>``. Only target tokens (end of sequence included) carry a label, and
only the positions that predict them ever reach the LM head.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from prior.errors import CorpusTooSmall
from prior.models.attention import document_layout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from prior.models import Architecture, Picture

# Pictures as models see them are kept in memory up to this size, and read anew beyond it.
KEPT_BYTES = 2**29

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths in one flat array; sequence i is ``values[offsets[i]:offsets[i + 1]]``."""

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, sequences: Iterable[Sequence[Any]], dtype: Any) -> Ragged:
        sequences = list(sequences)
        offsets = np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences], dtype=np.int64)])
        flat = np.fromiter((value for sequence in sequences for value in sequence), dtype=dtype, count=int(offsets[-1]))
        return cls(flat, offsets)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]


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
    """Tokenised documents; `relevant` and `ref_logprob` lie beside the target tokens.

    Attributes
    ----------
    ids
        One name per document.
    targets
        int32 tokens that carry a label, end of sequence included.
    prompts
        int32 tokens before them that carry none; None for captions and plain text.
    relevant
        float32 beside ``targets.values``: 1 where the picture decides the token, 0 where not, NaN where unknown.
    ref_logprob
        float32 beside ``targets.values``: log p_r; None where the objective does not need it.
    image
        Encoded bytes of a document's picture; None for text without pictures.
    """

    ids: list[str]
    targets: Ragged
    prompts: Ragged | None = None
    relevant: np.ndarray | None = None
    ref_logprob: np.ndarray | None = None
    image: Callable[[int], bytes] | None = field(default=None, compare=False)
    _sizes: dict[int, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)
    _pictures: Pictures = field(default_factory=Pictures, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def without_pictures(self) -> Documents:
        return replace(self, image=None)

    def open_image(self, index: int) -> Image.Image:
        assert self.image is not None
        return Image.open(io.BytesIO(self.image(index))).convert("RGB")

    def pictures(self, architecture: Architecture, indices: Sequence[int]) -> list[Picture]:
        """The documents' pictures as an architecture sees them."""
        return self._pictures.read(architecture, indices, self.open_image)

    def image_size(self, index: int) -> tuple[int, int]:
        """(width, height) of a picture, read from its header once for all runs over these documents."""
        if index not in self._sizes:
            assert self.image is not None
            with Image.open(io.BytesIO(self.image(index))) as image:
                self._sizes[index] = image.size
        return self._sizes[index]


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
        relevant=Ragged.of(relevant, np.float32).values,
        image=(lambda index: pictures[index]["image"]) if pictures is not None else None,
    )


def tokenize_texts(ids: Sequence[str], texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Documents:
    """Tokenise plain texts, every token of which is a target."""
    encoded = encode(tokenizer, texts)["input_ids"]
    return Documents(list(ids), Ragged.of([[*tokens, tokenizer.eos_token_id] for tokens in encoded], np.int32))


def tokenize_exchanges(
    ids: Sequence[str],
    prompts: Sequence[str],
    answers: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    image: Callable[[int], bytes] | None,
) -> Documents:
    """Tokenise prompts and answers; only the answers are targets."""
    before = encode(tokenizer, prompts)["input_ids"]
    after = encode(tokenizer, answers)["input_ids"]
    return Documents(
        list(ids),
        targets=Ragged.of([[*tokens, tokenizer.eos_token_id] for tokens in after], np.int32),
        prompts=Ragged.of(before, np.int32),
        image=image,
    )


def concatenate(first: Documents, second: Documents) -> Documents:
    """Both sets of text documents, one after the other; relevance is NaN where one of them does not know it."""
    offsets = np.concatenate([first.targets.offsets, first.targets.offsets[-1] + second.targets.offsets[1:]])
    values = np.concatenate([first.targets.values, second.targets.values])
    relevant = None
    if first.relevant is not None or second.relevant is not None:
        parts = [
            np.full(len(part.targets.values), np.nan, np.float32) if part.relevant is None else part.relevant
            for part in (first, second)
        ]
        relevant = np.concatenate(parts)
    return Documents([*first.ids, *second.ids], Ragged(values, offsets), relevant=relevant)


def select(documents: Documents, indices: np.ndarray) -> Documents:
    """The targets of some of the documents, in the given order."""
    chosen = [documents.targets[index].tolist() for index in indices]
    return Documents([documents.ids[index] for index in indices], Ragged.of(chosen, np.int32))


def nested_subset(lengths: np.ndarray, tokens: int, seed: int) -> np.ndarray:
    """The documents of one data scale, in training order.

    A seed fixes one order of the corpus; a scale is its shortest beginning that holds `tokens` target tokens. So each
    scale contains the smaller ones.

    Raises
    ------
    CorpusTooSmall
        If it holds fewer tokens.
    """
    order = np.random.default_rng([seed, 11]).permutation(len(lengths))
    reached = np.cumsum(lengths[order])
    if not len(reached) or reached[-1] < tokens:
        raise CorpusTooSmall(f"{tokens} caption tokens are asked for, but the corpus holds {int(lengths.sum())}")
    return order[: int(np.searchsorted(reached, tokens)) + 1]


def repeat_order(order: np.ndarray, epochs: float, seed: int) -> np.ndarray:
    """Several epochs over the same documents: the first in the given order, each later one shuffled anew."""
    rounds = [order] + [
        np.random.default_rng([seed, 13, epoch]).permutation(order) for epoch in range(1, int(np.ceil(epochs)))
    ]
    return np.concatenate(rounds)[: max(1, round(epochs * len(order)))]


def plan_rows(lengths: np.ndarray, order: Iterable[int], row_tokens: int) -> list[list[int]]:
    """Fill rows with whole documents in the given order; a longer document gets a row of its own."""
    rows: list[list[int]] = []
    filled = row_tokens
    for index in order:
        if filled + lengths[index] > row_tokens:
            rows.append([])
            filled = 0
        rows[-1].append(int(index))
        filled += int(lengths[index])
    return rows


class Packer:
    """Lays documents out as rows for one model.

    Parameters
    ----------
    documents
        What to lay out.
    bos_token_id
        The token that opens each document: the context of a caption's first token with and without a picture.
    architecture
        How pictures are read; None for text alone.
    """

    def __init__(self, documents: Documents, bos_token_id: int, architecture: Architecture | None = None) -> None:
        self.documents = documents
        self.bos = bos_token_id
        self.architecture = architecture if documents.image is not None else None

    def lengths(self, indices: Iterable[int] | None = None) -> np.ndarray:
        """Tokens of each document in a row, picture included; only those of `indices` are right if it is given."""
        documents = self.documents
        lengths = 1 + documents.targets.lengths
        if documents.prompts is not None:
            lengths = lengths + documents.prompts.lengths
        if self.architecture is not None:
            for index in range(len(documents)) if indices is None else set(indices):
                lengths[index] += self.architecture.prefix_length(documents.image_size(index))
        return lengths

    def row(self, indices: Sequence[int]) -> Batch:
        """One packed row.

        Returns
        -------
        dict of tensors
            For the model: ``input_ids`` and ``position_ids`` (1, tokens), ``logits_to_keep`` (1, tokens) bool,
            ``document_rows``, ``document_cells`` (see `document_layout`), ``pixel_values`` where there are pictures.
            For the loss, one entry per label: ``labels``, ``caption_index``, ``relevant``, ``ref_logprob``.
            ``is_picture`` (1, tokens) bool marks what a blind pass leaves out.
        """
        documents = self.documents
        pictures = documents.pictures(self.architecture, indices) if self.architecture is not None else []
        tokens, is_picture, keep = [], [], []
        for place, index in enumerate(indices):
            picture = pictures[place].ids if pictures else []
            prompt = documents.prompts[index] if documents.prompts is not None else np.empty(0, np.int32)
            target = documents.targets[index]
            body = np.concatenate([[self.bos], picture, prompt, target[:-1]]).astype(np.int64)
            # The last target is predicted but never read.
            tokens.append(body)
            mask = np.zeros(len(body), dtype=bool)
            mask[1 : 1 + len(picture)] = True
            is_picture.append(mask)
            predicts = np.zeros(len(body), dtype=bool)
            predicts[len(body) - len(target) :] = True
            keep.append(predicts)
        targets = documents.targets
        where = np.concatenate([np.arange(targets.offsets[i], targets.offsets[i + 1]) for i in indices])
        batch: Batch = {
            "input_ids": torch.from_numpy(np.concatenate(tokens))[None],
            "logits_to_keep": torch.from_numpy(np.concatenate(keep))[None],
            "is_picture": torch.from_numpy(np.concatenate(is_picture))[None],
            "labels": torch.from_numpy(targets.values[where].astype(np.int64)),
            "caption_index": torch.from_numpy(np.repeat(np.arange(len(indices)), targets.lengths[list(indices)])),
            **document_layout([len(body) for body in tokens]),
        }
        for name in ("relevant", "ref_logprob"):
            if (column := getattr(documents, name)) is not None:
                batch[name] = torch.from_numpy(column[where])
        if pictures and self.architecture is not None:
            batch["pixel_values"] = self.architecture.collate(pictures)
        return batch


def unlabelled(batch: Batch) -> Batch:
    """The same row without its labels: the model computes it, and nothing comes of it."""
    bare = dict(batch)
    for name in ("labels", "caption_index", "relevant", "ref_logprob"):
        if name in bare:
            bare[name] = bare[name][:0]
    bare["logits_to_keep"] = torch.zeros_like(batch["logits_to_keep"])
    return bare


MODEL_INPUTS = ("input_ids", "position_ids", "logits_to_keep", "document_rows", "document_cells", "pixel_values")


def model_inputs(batch: Batch) -> Batch:
    """What the model's ``forward`` takes of a row."""
    return {name: batch[name] for name in MODEL_INPUTS if name in batch}


def blind_inputs(batch: Batch) -> Batch:
    """The same row with its pictures left out, as ``forward`` takes it."""
    text = ~batch["is_picture"]
    # A document starts wherever the position is 0; its remaining length is what is left of it without the picture.
    document = torch.cumsum(batch["position_ids"][0] == 0, 0) - 1
    lengths = torch.bincount(document[text[0]]).tolist()
    layout = {name: part.to(text.device) for name, part in document_layout(lengths).items()}
    return {
        "input_ids": batch["input_ids"][text][None],
        "logits_to_keep": _keep_blind(batch, text),
        **layout,
    }


def _keep_blind(batch: Batch, text: torch.Tensor) -> torch.Tensor:
    """Label positions after the pictures are gone: a label read off a picture's last token moves to the token before.

    Without a prompt the first target is predicted at the picture's end; blind, it is predicted at ``<s>``.
    """
    keep = batch["logits_to_keep"].clone()
    lost = keep & batch["is_picture"]
    starts = batch["position_ids"] == 0
    document = torch.cumsum(starts[0], 0) - 1
    keep[0, starts[0].nonzero()[:, 0][document[lost[0]]]] = True
    return keep[text][None]


def _overlaps(offsets: Sequence[tuple[int, int]], spans: Sequence[Sequence[int]]) -> list[float]:
    """Whether each [start, end) range of characters shares one with any span: 1.0 or 0.0."""
    ends = np.array([end for _, end in offsets] or [0])
    marked = np.zeros(int(ends[-1]) + 1, dtype=np.int64)
    for start, end in spans:
        marked[start + 1 : end + 1] = 1
    before = np.cumsum(marked)
    starts = np.array([start for start, _ in offsets] or [0])
    return (before[ends] > before[starts]).astype(float).tolist()[: len(offsets)]
