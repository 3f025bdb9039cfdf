"""PRIOR inside other training code: scores of a list of captions, and a weighted loss for padded batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from torch.nn.utils.rnn import pad_sequence

from prior.documents import encode
from prior.errors import UserError
from prior.files import whole
from prior.loss import token_nll, weighted_ntp_loss
from prior.scores import SCHEMA
from prior.weighting import prior_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100


@dataclass(frozen=True)
class CaptionScores:
    """log p_r of every token of some captions. The lists have one entry per caption, in the order of the captions.

    Attributes
    ----------
    ids
        Names of the captions.
    input_ids
        int32 arrays of shape (k,): a caption's tokens and the end of sequence, without a beginning of sequence.
    logprobs
        float32 arrays of shape (k,): natural log of each token's probability given those before it.
    """

    ids: list[str]
    input_ids: list[np.ndarray]
    logprobs: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)

    def weights(self, alpha: float = 1.0) -> list[np.ndarray]:
        """PRIOR's weights, a float32 array of shape (k,) for each caption, which sums to k (see `prior_weights`)."""
        sizes = [len(logprob) for logprob in self.logprobs]
        caption = torch.repeat_interleave(torch.tensor(sizes))
        weights = prior_weights(torch.from_numpy(np.concatenate(self.logprobs)), caption, alpha)
        return [part.numpy() for part in weights.split(sizes)]

    def save(self, path: str | Path) -> None:
        """Write an Arrow file with the columns ``id``, ``input_ids`` and ``logprob``; log p_r is kept, not weights."""
        columns = {"id": self.ids, "input_ids": self.input_ids, "logprob": self.logprobs}
        with whole(path) as temporary, pa.ipc.new_file(str(temporary), SCHEMA) as writer:
            writer.write_table(pa.table(columns, schema=SCHEMA), max_chunksize=65_536)

    @classmethod
    def load(cls, path: str | Path) -> CaptionScores:
        """Read what `save` or ``prior score`` has written.

        Raises
        ------
        UserError
            If there is no such file, or it holds something else.
        """
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all().select(SCHEMA.names)
        except (OSError, KeyError, pa.ArrowInvalid):
            raise UserError(f"{path}: this is no file of caption scores; make one with score_captions") from None
        lists = [[row.values.to_numpy() for row in table[name]] for name in ("input_ids", "logprob")]
        return cls(table["id"].to_pylist(), *lists)


@torch.no_grad()
def score_captions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    captions: Sequence[str],
    *,
    ids: Sequence[str] | None = None,
    batch_tokens: int = 4096,
    progress: Callable[[int, int], object] | None = None,
) -> CaptionScores:
    """Score captions with a reference LLM: log p_r of every token given the caption's earlier tokens.

    The context of the first token is ``<s>`` alone (the end of sequence, for a tokenizer that has no beginning of
    sequence): what an LVLM sees there without the picture. The end of sequence is scored like any other token.

    Parameters
    ----------
    model
        Any causal LM of transformers, on any device and in any dtype; it has learned captions without their pictures.
    tokenizer
        The model's own, which the LVLM must share.
    captions
        Texts. What looks like a special token in them is ordinary text.
    ids
        A name for each caption; by default, its number.
    batch_tokens
        Tokens at a time, padding included. The logits of one batch are held, in float32, and none are kept.
    progress
        Called after each batch with the captions done and their number.

    Raises
    ------
    UserError
        If there is nothing to score, or the model or tokenizer cannot score it.
    """
    captions = list(captions)
    if not captions or (ids is not None and len(ids) != len(captions)):
        names = "none" if ids is None else str(len(ids))
        raise UserError(f"captions: got {len(captions)} captions and {names} ids; give one caption or more, each an id")
    if tokenizer.eos_token_id is None:
        raise UserError("tokenizer: it has no end-of-sequence token; set its eos_token")
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    targets = [np.array([*tokens, tokenizer.eos_token_id], np.int32) for tokens in _tokens(tokenizer, captions)]
    _check_fit(model, targets)
    logprobs: list[np.ndarray] = [np.empty(0, np.float32)] * len(targets)
    was_training = model.training
    model.eval()
    done = 0
    for batch in _batches([len(target) for target in targets], batch_tokens):
        labels = [torch.from_numpy(targets[index]).long() for index in batch]
        for index, logprob in zip(batch, _logprobs(model, start, labels), strict=True):
            logprobs[index] = logprob
        done += len(batch)
        if progress:
            progress(done, len(captions))
    model.train(was_training)
    return CaptionScores([str(name) for name in (ids or range(len(captions)))], targets, logprobs)


def weighted_causal_lm_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """The weighted loss of a padded batch as transformers lays it out; with weights of one, transformers' own loss.

    Parameters
    ----------
    logits : float tensor of shape (batch, length, vocabulary)
        As the model gives them: position i predicts token i + 1.
    labels : int64 tensor of shape (batch, length)
        Beside ``input_ids``, not shifted; −100 where there is none.
    weights : float tensor of shape (batch, length)
        Beside the labels; read only where there is a label.
    num_items_in_batch : int, optional
        Labels of the whole optimizer step, as `Trainer` counts them. Default: those of this batch.

    Returns
    -------
    float32 tensor of shape ()
    """
    targets = labels[:, 1:]
    labelled = targets != IGNORED
    nll = token_nll(logits[:, :-1][labelled], targets[labelled])
    return weighted_ntp_loss(nll, weights[:, 1:][labelled], num_items_in_batch)


def _tokens(tokenizer: PreTrainedTokenizerBase, captions: list[str]) -> list[list[int]]:
    return encode(tokenizer, captions, offsets=False)["input_ids"]


def _check_fit(model: PreTrainedModel, targets: list[np.ndarray]) -> None:
    known = model.get_input_embeddings().num_embeddings
    if (highest := max(int(target.max()) for target in targets)) >= known:
        raise UserError(
            f"tokenizer: it gives token {highest}, but the model knows {known} tokens; give the model's own"
        )
    longest = max(map(len, targets))
    if longest > (limit := getattr(model.config, "max_position_embeddings", None) or longest):
        raise UserError(f"captions: one has {longest} tokens, but the model reads {limit}; shorten or leave it out")


def _batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Captions of about equal length, the longest first: what does not fit into memory fails at once."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    yield batch


def _logprobs(model: PreTrainedModel, start: int, labels: list[torch.Tensor]) -> list[np.ndarray]:
    """log p of the labels of each caption in one padded batch."""
    # The last token is predicted but never read.
    inputs = pad_sequence([torch.cat([label.new_tensor([start]), label[:-1]]) for label in labels], True, start)
    targets = pad_sequence(labels, True, IGNORED)
    real = targets != IGNORED
    # Padded on the right, real tokens keep their places and cannot see the padding.
    logits = model(
        input_ids=inputs.to(model.device), attention_mask=real.long().to(model.device), use_cache=False
    ).logits
    nll = token_nll(logits[real.to(logits.device)], targets[real].to(logits.device))
    return [part.numpy() for part in (-nll).cpu().split([len(label) for label in labels])]
