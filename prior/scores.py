"""log p of every caption token: computed in packed batches, stored as the contract says, aligned before use.

Shards of a corpus are scored independently of one another; the logits of a batch are gone once one log-probability per
token has been gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from prior import processes
from prior.documents import Documents, Ragged
from prior.errors import UserError
from prior.files import whole
from prior.loss import caption_nll
from prior.packing import Batch, Packer, model_inputs, plan_rows
from prior.tokens import metadata, ragged_array, read_ragged, read_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCHEMA = pa.schema([("id", pa.string()), ("input_ids", pa.list_(pa.int32())), ("logprob", pa.list_(pa.float32()))])


@torch.no_grad()
def token_logprobs(
    model: PreTrainedModel,
    packer: Packer,
    row_tokens: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Natural log of the probability of every target token, given its context.

    The model must attend within documents (`prior.models.attention.pack`). Where there are several processes, all have
    to call it: each computes its share of the rows, and all get the whole.

    Returns
    -------
    float32 array beside ``packer.documents.targets``, flat
    """
    lengths = packer.lengths()
    sizes = packer.documents.targets.lengths
    starts = np.cumsum(sizes) - sizes
    rows = plan_rows(lengths, np.argsort(lengths, kind="stable"), row_tokens)
    device = next(model.parameters()).device
    result = torch.zeros(int(sizes.sum()), device=device)
    for begin in range(0, len(rows), processes.count()):
        mine = begin + processes.index()
        # A sharded model needs all processes in each pass; what is left over in the last round is computed in vain.
        row = rows[min(mine, len(rows) - 1)]
        batch: Batch = {name: part.to(device) for name, part in packer.row(row).items()}
        nll = caption_nll(model, model_inputs(batch), batch["labels"])
        if mine < len(rows):
            where = np.concatenate([np.arange(starts[i], starts[i] + sizes[i]) for i in row])
            result[torch.from_numpy(where).to(device)] = -nll.float()
        if progress:
            progress(min(begin + processes.count(), len(rows)), len(rows))
    return processes.total(result).cpu().numpy()


def write_scores(path: Path, documents: Documents, logprob: np.ndarray, fingerprints: dict[str, str]) -> None:
    """Store the scores of one shard as Arrow: id, input_ids, logprob; fingerprints go into the schema's metadata."""
    columns = {
        "id": pa.array(documents.ids),
        "input_ids": ragged_array(documents.targets, pa.int32()),
        "logprob": ragged_array(documents.targets.beside(logprob), pa.float32()),
    }
    table = pa.table(columns, schema=SCHEMA.with_metadata(fingerprints))
    with whole(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table, max_chunksize=65_536)


def align(tokens: Sequence[Path], scores: Sequence[Path]) -> Ragged:
    """The stored log p_r beside the tokens of some shards, memory-mapped.

    Parameters
    ----------
    tokens, scores
        The shards of either, in the same order.

    Raises
    ------
    UserError
        If the scores were made with another tokenizer or corpus, or differ from what is trained on.
    """
    if len(tokens) != len(scores):
        raise UserError(f"{scores[0].parent}: {len(scores)} shards of scores for {len(tokens)} of tokens; score again")
    columns = []
    for shard, path in zip(tokens, scores, strict=True):
        expected, found = metadata(shard), metadata(path)
        for name, value in expected.items():
            if found.get(name) != value:
                raise UserError(
                    f"{path}: these scores were made with another {name} ({found.get(name)}, not {value}); "
                    "delete the file and score again"
                )
        trained, scored = read_table(shard), read_table(path)
        if not scored["id"].equals(trained["id"]):
            raise UserError(f"{path}: its captions are not those of {shard}, or in another order; score again")
        if not scored["input_ids"].equals(trained["input_ids"]):
            raise UserError(f"{path}: its tokens differ from those in {shard}, which are trained on; score again")
        columns.append(scored["logprob"])
    return Ragged.join(map(read_ragged, columns))
