"""log p of every caption token: computed in packed batches, stored as the contract says, aligned before use.

Shards of a corpus are scored independently of one another; the logits of a batch are gone once one log-probability per
token has been gathered.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from prior.errors import UserError
from prior.files import whole
from prior.loss import token_nll
from prior.packing import Batch, Documents, Packer, Ragged, model_inputs, plan_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SCHEMA = pa.schema([("id", pa.string()), ("input_ids", pa.list_(pa.int32())), ("logprob", pa.list_(pa.float32()))])


@torch.no_grad()
def token_logprobs(
    model: PreTrainedModel,
    packer: Packer,
    row_tokens: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Natural log of the probability of every target token, given its context.

    The model must attend within documents (`prior.models.attention.pack`).

    Returns
    -------
    float32 array beside ``packer.documents.targets.values``
    """
    lengths = packer.lengths()
    targets = packer.documents.targets
    result = np.empty(len(targets.values), dtype=np.float32)
    rows = plan_rows(lengths, np.argsort(lengths, kind="stable"), row_tokens)
    device = next(model.parameters()).device
    for done, row in enumerate(rows):
        batch: Batch = {name: part.to(device) for name, part in packer.row(row).items()}
        nll = token_nll(model(**model_inputs(batch), use_cache=False).logits, batch["labels"])
        where = np.concatenate([np.arange(targets.offsets[i], targets.offsets[i + 1]) for i in row])
        result[where] = -nll.float().cpu().numpy()
        if progress:
            progress(done + 1, len(rows))
    return result


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 over the vocabulary: which token has which number."""
    import hashlib

    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]


def write_scores(path: Path, documents: Documents, logprob: np.ndarray, fingerprints: dict[str, str]) -> None:
    """Store scores as Arrow: id, input_ids, logprob; fingerprints go into the schema's metadata."""
    targets = documents.targets
    offsets = pa.array(targets.offsets.astype(np.int32))
    table = pa.table(
        {
            "id": pa.array(documents.ids),
            "input_ids": pa.ListArray.from_arrays(offsets, pa.array(targets.values, pa.int32())),
            "logprob": pa.ListArray.from_arrays(offsets, pa.array(logprob, pa.float32())),
        },
        schema=SCHEMA.with_metadata({key: value for key, value in fingerprints.items()}),
    )
    with whole(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table, max_chunksize=65_536)


def read_scores(path: Path) -> tuple[list[str], Ragged, np.ndarray, dict[str, str]]:
    """Ids, tokens, log-probabilities (flat, beside the tokens) and fingerprints of a scores file, memory-mapped."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    tokens, logprob = table["input_ids"].combine_chunks(), table["logprob"].combine_chunks()
    ragged = Ragged(tokens.flatten().to_numpy(), tokens.offsets.to_numpy().astype(np.int64))
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    return table["id"].to_pylist(), ragged, logprob.flatten().to_numpy(), metadata


def align(documents: Documents, path: Path, fingerprints: dict[str, str]) -> np.ndarray:
    """The stored log p_r beside ``documents.targets.values``.

    Raises
    ------
    UserError
        If the scores were made with another tokenizer or corpus, or differ from what is tokenised here.
    """
    ids, tokens, logprob, found = read_scores(path)
    for name, expected in fingerprints.items():
        if found.get(name) != expected:
            raise UserError(
                f"{path}: these scores were made with another {name} ({found.get(name)}, not {expected}); "
                "delete the file and score again"
            )
    if ids != documents.ids:
        raise UserError(f"{path}: its captions are not those of the corpus, or in another order; score again")
    if not np.array_equal(tokens.offsets, documents.targets.offsets) or not np.array_equal(
        tokens.values, documents.targets.values
    ):
        raise UserError(f"{path}: its tokens differ from those that training makes of the same captions; score again")
    return logprob
