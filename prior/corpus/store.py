"""The corpus on disk: Hugging Face datasets whose content, and nothing else, decides their bytes and fingerprint."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import pyarrow as pa

from prior.errors import UserError
from prior.files import whole, write_json

if TYPE_CHECKING:
    from datasets import Dataset, Features

FINGERPRINT = "fingerprint.json"
_BATCH = 256


class Record(TypedDict):
    """A captioned picture; `relevant` holds [start, end) character spans of the caption, or None where unknown."""

    id: str
    image: bytes
    caption: str
    relevant: list[list[int]] | None


class Text(TypedDict):
    """An entry of the text-only split."""

    id: str
    text: str


def write_corpus(records: Iterable[Mapping[str, object]], folder: str | Path) -> None:
    """Save captioned pictures as a dataset with the columns id, image (encoded bytes), caption and relevant.

    Records are streamed: only the ids and one batch of pictures are held in memory. The same records give the same
    bytes, on any machine.

    Raises
    ------
    UserError
        If there are no records or two share an id; `folder` stays as it was.
    """
    from datasets import Features, List, Value

    string = Value("string")
    spans = List(List(Value("int32")))
    columns = {"id": string, "image": Value("binary"), "caption": string, "relevant": spans}
    _write(records, Features(columns), folder, "caption")


def write_texts(records: Iterable[Mapping[str, object]], folder: str | Path) -> None:
    """Save the text-only split: columns id and text. Otherwise as `write_corpus`."""
    from datasets import Features, Value

    _write(records, Features({"id": Value("string"), "text": Value("string")}), folder, "text")


def read_corpus(folder: str | Path, shards: Sequence[str] = ("",)) -> Dataset:
    """Memory-map what `write_corpus` or `write_texts` saved: one shard, or those of a split in the given order.

    Raises
    ------
    UserError
        If one of them is not there.
    """
    from datasets import concatenate_datasets, load_from_disk

    for shard in shards:
        fingerprint(Path(folder, shard))
    return concatenate_datasets([load_from_disk(str(Path(folder, shard))) for shard in shards])


def fingerprint(folder: str | Path) -> str:
    """SHA-256 (hexadecimal) over ids, captions and pictures of a shard, in their order; read from a small file.

    Raises
    ------
    UserError
        If none is stored in `folder`.
    """
    path = Path(folder) / FINGERPRINT
    if not path.is_file():
        raise UserError(f"corpus '{folder}': no corpus is stored there; make it with `prior corpus`")
    return str(json.loads(path.read_text(encoding="utf-8"))["sha256"])


def _write(records: Iterable[Mapping[str, Any]], features: Features, folder: str | Path, text: str) -> None:
    from datasets import Dataset

    digest = hashlib.sha256()
    ids: set[str] = set()
    rest = iter(records)
    with whole(folder) as temporary:
        # A datasets folder is made from a table, and a memory-mapped one need not fit into memory.
        stream = temporary / "stream" / "rows.arrow"
        stream.parent.mkdir(parents=True)
        schema = features.arrow_schema
        with pa.OSFile(str(stream), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            while batch := list(itertools.islice(rest, _BATCH)):
                for record in batch:
                    if record["id"] in ids:
                        raise UserError(
                            f"corpus '{folder}': the id '{record['id']}' occurs twice; "
                            "give every caption an id of its own"
                        )
                    ids.add(record["id"])
                    content = [record["id"], record[text]]
                    if "image" in record:
                        content.append(hashlib.sha256(record["image"]).hexdigest())
                    digest.update(json.dumps(content).encode("ascii") + b"\n")
                writer.write_batch(pa.RecordBatch.from_pylist([dict(record) for record in batch], schema=schema))
        if not ids:
            raise UserError(f"corpus '{folder}': there is nothing to store; add captions to its source")
        # The datasets library would make up a fingerprint; ours is set, so that equal content gives equal bytes.
        mapped = Dataset.from_file(str(stream))
        Dataset(mapped.data, fingerprint=digest.hexdigest()[:16]).save_to_disk(str(temporary))
        shutil.rmtree(stream.parent)
        write_json(temporary / FINGERPRINT, {"rows": len(ids), "sha256": digest.hexdigest()})
