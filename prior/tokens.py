"""The tokens of a corpus's captions on disk, shard by shard: made once, memory-mapped by all that read them.

Arrow: ``id``, ``input_ids`` (end of sequence included), ``relevant`` beside them (1 where the picture decides the
token, 0 where not, NaN where unknown), ``width`` and ``height`` of the picture. The schema's metadata holds
fingerprints of the corpus shard and of the tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from prior.documents import Documents, Ragged, image_size, tokenize_captions
from prior.errors import UserError
from prior.files import whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("relevant", pa.list_(pa.float32())),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
_BATCH = 4096


def write_tokens(path: Path, records: Any, tokenizer: PreTrainedTokenizerFast, corpus: str) -> None:
    """Tokenise the captions of one shard; `corpus` is its fingerprint. A few thousand captions are held at a time."""
    metadata = {"corpus": corpus, "tokenizer": tokenizer_fingerprint(tokenizer)}
    schema = SCHEMA.with_metadata(metadata)
    with whole(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        for start in range(0, len(records), _BATCH):
            part = records.select(range(start, min(start + _BATCH, len(records))))
            documents = tokenize_captions(part, tokenizer, image=False)
            assert documents.relevant is not None
            sizes = np.array([image_size(row["image"]) for row in part.select_columns(["image"])], dtype=np.int32)
            columns = [
                pa.array(documents.ids),
                ragged_array(documents.targets, pa.int32()),
                ragged_array(documents.relevant, pa.float32()),
                pa.array(sizes[:, 0]),
                pa.array(sizes[:, 1]),
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def read_tokens(paths: Sequence[Path], image: Callable[[int], bytes] | None = None) -> Documents:
    """The captions of some shards as one set of documents; nothing but their ids and sizes is read before it is used.

    `image` gives the encoded picture of each.
    """
    tables = [read_table(path) for path in paths]
    sizes = [np.stack([table[name].to_numpy() for name in ("width", "height")], axis=1) for table in tables]
    return Documents(
        ids=[name for table in tables for name in table["id"].to_pylist()],
        targets=Ragged.join(map(read_ragged, (table["input_ids"] for table in tables))),
        relevant=Ragged.join(map(read_ragged, (table["relevant"] for table in tables))),
        image=image,
        sizes=np.concatenate(sizes),
    )


def fingerprints(paths: Sequence[Path]) -> dict[str, str]:
    """Fingerprints of the captions and of the tokenizer that some shards were made from."""
    found = [metadata(path) for path in paths]
    total = hashlib.sha256(json.dumps([shard["corpus"] for shard in found]).encode()).hexdigest()[:16]
    (tokenizer,) = {shard["tokenizer"] for shard in found}
    return {"corpus": total, "tokenizer": tokenizer}


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 over the vocabulary: which token has which number."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]


def metadata(path: Path) -> dict[str, str]:
    """What the schema of an Arrow file says beside its columns."""
    with pa.memory_map(str(path)) as source:
        found = pa.ipc.open_file(source).schema.metadata or {}
    return {key.decode(): value.decode() for key, value in found.items()}


def read_table(path: Path) -> pa.Table:
    """An Arrow file, memory-mapped."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def read_ragged(column: pa.ChunkedArray) -> Ragged:
    """A column of lists, not copied."""
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    return Ragged(tuple((chunk.values.to_numpy(), chunk.offsets.to_numpy()) for chunk in chunks))


def ragged_array(ragged: Ragged, kind: pa.DataType) -> pa.ListArray:
    """Sequences as an Arrow column of lists."""
    return pa.ListArray.from_arrays(pa.array(ragged.offsets.astype(np.int32)), pa.array(ragged.values, kind))


def shard_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files of some shards in a folder.

    Raises
    ------
    UserError
        If one is missing.
    """
    files = [folder / f"{name}.arrow" for name in names]
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(f"{missing[0]}: there is no such shard; make it first")
    return files
