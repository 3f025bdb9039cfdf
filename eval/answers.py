"""Answers as they are given: each batch is on disk before the next is asked, so that nothing is asked twice."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path


class Answers:
    """The answers to one benchmark by row number, those of an interrupted job included.

    A file of JSON lines: first the key, which names everything that the answers depend on, then a line per batch. What
    was written under another key is discarded, and so is a line that was cut off.

    Parameters
    ----------
    path
        Private file; its folder is made if need be.
    key
        Text that is the same only where the answers would be the same.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.given: dict[int, str] = {}
        self._path = path
        whole = json.dumps(key).encode() + b"\n"
        written = path.read_bytes() if path.is_file() else b""
        if written.startswith(whole):
            for line in written[len(whole) :].splitlines(keepends=True):
                try:
                    batch = {int(row): str(text) for row, text in json.loads(line).items()}
                except (ValueError, AttributeError):
                    break
                if not line.endswith(b"\n"):
                    break
                self.given |= batch
                whole += line
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(whole)

    def add(self, batch: Mapping[int, str]) -> None:
        """Write down the answers of a batch."""
        self.given |= batch
        with self._path.open("ab") as stream:
            stream.write(json.dumps(dict(batch)).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def remove(self) -> None:
        """Forget the answers, once they are where they belong."""
        self._path.unlink(missing_ok=True)
