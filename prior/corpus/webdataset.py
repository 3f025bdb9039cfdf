"""Captioned pictures from WebDataset shards: tar files as img2dataset writes them, read as streams."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from prior.corpus.readers import leave_out, picture_trouble
from prior.corpus.store import Record
from prior.errors import UserError

PICTURES = ("jpg", "jpeg", "png", "webp")
SUFFIXES = (*PICTURES, "txt", "json")

# A sample's key ends at the first dot after the folders; a name that begins with a dot has none.
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")


def read_tars(paths: Sequence[Path], max_bad_fraction: float) -> Iterator[Record]:
    """Captioned pictures of WebDataset tars (`webdataset <https://github.com/webdataset/webdataset>`_), as streams.

    Files that follow each other under one key are a sample: a picture (``jpg``, ``jpeg``, ``png`` or ``webp``) and its
    caption, ``<key>.txt`` or, where there is none, ``caption`` of ``<key>.json``. One sample at a time is held in
    memory. A sample is left out if a part is missing, its picture cannot be decoded or is so large that Pillow takes
    it for a decompression bomb, or its caption is empty or not UTF-8.

    Parameters
    ----------
    paths
        Tar files, not compressed, whose names differ without their folders.
    max_bad_fraction
        The share of samples up to which they are left out, with one note. It is known when all have been read: a
        reader must keep nothing until the iteration ends.

    Yields
    ------
    Records with the id ``<tar's name>/<key>``, characters other than ``A-Za-z0-9_.-~/`` percent-encoded, stripped
    captions and unknown relevant spans.

    Raises
    ------
    UserError
        If a file is missing, cut off or no tar, two share a name, there are no samples or too many bad ones.
    """
    if not paths:
        raise UserError("corpus: there is no tar file to read; name more of them, or divide them into fewer shards")
    stems: dict[str, Path] = {}
    for path in paths:
        if path.stem in stems:
            raise UserError(
                f"'{path}' and '{stems[path.stem]}' would share the ids '{path.stem}/<key>'; rename or remove one"
            )
        stems[path.stem] = path
    total = 0
    bad: list[str] = []
    for path in paths:
        for key, files in _samples(path):
            total += 1
            identity = quote(f"{path.stem}/{key}", errors="surrogateescape")
            record = _record(identity, files)
            if isinstance(record, str):
                bad.append(f"'{identity}' {record}")
            else:
                yield record
    source = ", ".join(path.name for path in paths[:2]) + (", …" if len(paths) > 2 else "")
    if not total:
        raise UserError(f"{source}: no samples in it; name tar files that hold pictures and their captions")
    leave_out(source, "samples", bad, total, max_bad_fraction, "fetch the tar files again")


def _record(identity: str, files: Mapping[str, bytes]) -> Record | str:
    """The record of a sample, or what is wrong with it."""
    image = next((files[suffix] for suffix in PICTURES if suffix in files), None)
    if image is None:
        return "has no picture"
    if "txt" not in files and "json" not in files:
        return "has no caption"
    try:
        caption = files["txt"].decode("utf-8-sig") if "txt" in files else _json_caption(files["json"])
        caption.encode("utf-8")  # JSON can hold half a surrogate pair.
    except UnicodeError:
        return "has a caption that is not UTF-8"
    if not caption.strip():
        return "has an empty caption"
    return picture_trouble(image) or Record(id=identity, image=image, caption=caption.strip(), relevant=None)


def _json_caption(content: bytes) -> str:
    """The caption of img2dataset's metadata; empty where there is none."""
    try:
        caption = json.loads(content.decode("utf-8"))["caption"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return ""
    return caption if isinstance(caption, str) else ""


def _samples(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and files, by suffix, of each sample of a tar."""
    key, files = "", dict[str, bytes]()
    for name, suffix, content in _files(path):
        if files and (name != key or suffix in files):
            yield key, files
            files = {}
        key = name
        files[suffix] = content
    if files:
        yield key, files


def _files(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Key, suffix and content of the pictures and captions of a tar, in its order."""
    if not path.is_file():
        raise UserError(f"there is no file '{path}'; fetch it, or name the right one")
    try:
        with tarfile.open(path, "r:") as tar:
            while member := tar.next():
                # Otherwise the header of every member stays in memory.
                tar.members.clear()  # type: ignore[attr-defined]
                parts = _MEMBER.fullmatch(member.name)
                file = tar.extractfile(member) if member.isfile() else None
                if file and parts and parts[2].lower() in SUFFIXES:
                    yield parts[1], parts[2].lower(), file.read()
            # tarfile takes a header that is broken or cut off for the end, which is a block of zeros.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("no end of the archive")
    except tarfile.TarError as error:
        raise UserError(f"'{path}': cut off, or no plain tar file ({error}); fetch it again") from None
