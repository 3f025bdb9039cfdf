"""Documents to packed rows: whole documents laid end to end, positions restarting at each, no padding.

Only the positions that predict a labelled token ever reach the LM head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from prior.documents import Documents
from prior.models.attention import document_layout

if TYPE_CHECKING:
    from prior.models import Architecture

Batch = dict[str, torch.Tensor]


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
            target = documents.targets[index]
            # The last target is predicted but never read.
            body = np.concatenate([[self.bos], picture, target[:-1]]).astype(np.int64)
            tokens.append(body)
            mask = np.zeros(len(body), dtype=bool)
            mask[1 : 1 + len(picture)] = True
            is_picture.append(mask)
            predicts = np.zeros(len(body), dtype=bool)
            predicts[len(picture) :] = True if documents.labelled is None else documents.labelled[index]
            keep.append(predicts)
        labels = documents.targets.gather(indices)
        if documents.labelled is not None:
            labels = labels[documents.labelled.gather(indices)]
        batch: Batch = {
            "input_ids": torch.from_numpy(np.concatenate(tokens))[None],
            "logits_to_keep": torch.from_numpy(np.concatenate(keep))[None],
            "is_picture": torch.from_numpy(np.concatenate(is_picture))[None],
            "labels": torch.from_numpy(labels.astype(np.int64)),
            "caption_index": torch.from_numpy(np.repeat(np.arange(len(indices)), documents.labels[list(indices)])),
            **document_layout([len(body) for body in tokens]),
        }
        for name in ("relevant", "ref_logprob"):
            if (column := getattr(documents, name)) is not None:
                batch[name] = torch.from_numpy(column.gather(indices))
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
