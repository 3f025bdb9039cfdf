"""Importing VLMEvalKit, and keeping apart what it would mix up: its caches, its temporary files, its names."""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from eval import tsv
from prior.errors import UserError

# The name under which VLMEvalKit knows a benchmark. Its scoring goes by parts of the name, and a file with an official
# name would be compared with the official one and replaced by a download.
NAMES: dict[tsv.Kind, str] = {
    "mme": "MME_local",
    "pope": "POPE_local",
    "yes/no": "YesNo_local",
    "circular": "MMBench_local",
    "choice": "MCQ_local",
}


def kit(progress: bool = False) -> SimpleNamespace:
    """VLMEvalKit's classes and the two of its functions that are called by name. Imported on first use: 4-18 s.

    `progress` leaves it its progress bars.
    """
    from eval.vlmevalkit.torchvision_shim import import_torchvision

    # It prints, logs an error about a file of API keys that nobody needs here, and makes a data folder at once, in the
    # user's home unless told otherwise.
    logging.disable(logging.ERROR)
    os.environ.update(PRED_FORMAT="tsv", EVAL_FORMAT="csv", **({} if progress else {"TQDM_DISABLE": "1"}))
    try:
        with (
            tempfile.TemporaryDirectory() as data,
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
        ):
            os.environ.update(LMUData=data)
            import_torchvision()
            from vlmeval.dataset.image_mcq import ImageMCQDataset
            from vlmeval.dataset.image_yorn import ImageYORNDataset
            from vlmeval.dataset.utils import multiple_choice
            from vlmeval.smp import load
    except ModuleNotFoundError as error:
        raise missing(error.name) from None
    return SimpleNamespace(yes_no=ImageYORNDataset, choice=ImageMCQDataset, mcq=multiple_choice, load=load)


def missing(module: str | None) -> UserError:
    """What to say where VLMEvalKit, or something that it needs, is not installed."""
    return UserError(
        f"the module {module} is missing from {Path(sys.prefix).name}; make the environment with "
        "`bash envs/vlmevalkit.sh .venv .venv-vlmevalkit` and run this there"
    )


@contextlib.contextmanager
def fresh_folder(modules: SimpleNamespace) -> Iterator[Path]:
    """A new folder for one scoring, with VLMEvalKit's data and temporary files in it.

    Its caches are keyed by names alone, so an edited prediction would keep its old score in a used folder. Circular
    scoring writes and reads back ``/tmp/<the time in seconds>.tsv``: two processes in one second would swap their rows.
    The name is led into this folder instead. Multiple choice rewrites all its results after every row, so as to resume,
    which takes minutes for thousands of rows; nothing resumes in a folder that lives for one scoring: it writes once.
    """
    before = {key: os.environ.get(key) for key in ("LMUData", "TMPDIR")}
    clock, progress = modules.mcq.timestr, modules.mcq.track_progress_rich

    def written_once(func: Any, tasks: Any, save: str, keys: Any, **rest: Any) -> list[Any]:
        results: list[Any] = progress(func, tasks, **rest)
        modules.mcq.dump(dict(zip(keys, results, strict=True)), save)
        return results

    with tempfile.TemporaryDirectory(prefix="vlmevalkit-") as name:
        folder = Path(name).resolve()
        modules.mcq.timestr = lambda: os.path.relpath(folder / "circular", os.path.realpath("/tmp"))
        modules.mcq.track_progress_rich = written_once
        os.environ.update(LMUData=name, TMPDIR=name)
        tempfile.tempdir = None
        try:
            yield folder
        finally:
            modules.mcq.timestr, modules.mcq.track_progress_rich = clock, progress
            for key, value in before.items():
                os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)
            tempfile.tempdir = None


def dataset(modules: SimpleNamespace, kind: tsv.Kind, table: pd.DataFrame, folder: Path) -> Any:
    """One of VLMEvalKit's data sets, of these rows alone; `folder` is a `fresh_folder`."""
    table.to_csv(folder / f"{NAMES[kind]}.tsv", sep="\t", index=False, quoting=csv.QUOTE_ALL)
    return (modules.choice if kind in ("circular", "choice") else modules.yes_no)(dataset=NAMES[kind])
