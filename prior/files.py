"""Writing artefacts: to a temporary name beside their place, then renamed. A file that is there is whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, for a file or a folder; rename it into place when the block succeeds.

    A block that raises leaves nothing behind, and an existing artefact stays as it was. What a killed process left
    under the temporary name is cleared by the next attempt.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_dir():
            # A folder cannot be replaced in one step; the old one steps aside first.
            _remove(path)
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def write_text(path: str | Path, text: str) -> None:
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def link_or_copy(file: str | Path, target: str | Path) -> None:
    """A second name for a file, or a copy where the disk or its file system is another."""
    try:
        os.link(Path(file).resolve(), target)
    except OSError:
        shutil.copyfile(file, target)


def is_full(folder: Path) -> bool:
    """Whether nothing more can be written into a folder: its disk, a quota or a limit leaves no room."""
    probe = folder / ".room"
    try:
        probe.write_bytes(bytes(2**20))
    except OSError as error:
        return error.errno in NO_ROOM
    finally:
        probe.unlink(missing_ok=True)
    return False


def fingerprint(path: str | Path) -> str:
    """SHA-256 (16 hexadecimal digits) over a file, or over the names and contents of a folder's files.

    A folder's ``log.jsonl`` is left out: it holds times, and equal weights shall have equal fingerprints.
    """
    path = Path(path)
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and (file == path or file.name != "log.jsonl"):
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            total.update(f"{file.relative_to(path)} {content}\n".encode())
    return total.hexdigest()[:16]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
