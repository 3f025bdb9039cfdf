"""The private state of a training: what lets an interrupted one go on, kept out of sight until the artefact is whole.

A state folder holds Trainer's checkpoints, files of JSON lines that grow with the steps (``log.jsonl``, …) and
``made_from.json``: the settings and the fingerprints of the inputs that all of it was made from.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prior import processes
from prior.config import digest
from prior.files import write_text
from prior.lock import locked

MADE_FROM, WHOLE = "made_from.json", "whole"


@contextmanager
def private(folder: Path, *, keep: bool = False, **made_from: Any) -> Iterator[Path]:
    """Yield the state folder of one training; remove it when the block succeeds, keep it when the block raises.

    With `keep` it stays in any case, until somebody calls `clear`: a job of several trainings is done only with all.

    What an earlier attempt left is used only if it was made from the same settings and inputs. No other process has
    the folder meanwhile, but for those that share the training.
    """
    with processes.first_only(lambda: locked(folder.with_name(f".{folder.name}.lock"))):
        processes.join()
        if processes.first():
            _prepare(folder, digest(made_from))
        processes.wait()
        yield folder
        processes.wait()
        if not keep:
            clear(folder)


def clear(folder: Path) -> None:
    """Remove a state folder that has served."""
    if processes.first():
        # What cannot be removed now belongs to no settings and is never used.
        (folder / MADE_FROM).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def _prepare(folder: Path, key: str) -> None:
    file = folder / MADE_FROM
    if file.is_file() and file.read_text(encoding="utf-8") == key:
        return
    if folder.exists() and any(folder.glob("**/checkpoint-*")):
        print(f"{folder}: made from other settings or inputs; starting from the first step", file=sys.stderr)
    if folder.exists():
        shutil.rmtree(folder)
    write_text(file, key)


def mark_whole(checkpoint: Path) -> None:
    """To be called when all else of a checkpoint has been written."""
    (checkpoint / WHOLE).touch()


def last_whole(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end."""
    return max((path for path in folder.glob("checkpoint-*") if (path / WHOLE).exists()), key=_step, default=None)


def rewind(folder: Path) -> None:
    """Bring the state back to its last whole checkpoint: other checkpoints and lines of later steps are removed."""
    last = last_whole(folder)
    for path in folder.glob("checkpoint-*"):
        if path != last:
            shutil.rmtree(path)
    step = _step(last) if last else 0
    for file in folder.glob("*.jsonl"):
        write_text(file, "".join(json.dumps(line) + "\n" for line in read_lines(file) if line["step"] <= step))


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines; none where there is no file."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    # A killed process can leave half a line, which has no end.
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def append_lines(file: Path, lines: list[dict[str, Any]]) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write("".join(json.dumps(line) + "\n" for line in lines))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))
