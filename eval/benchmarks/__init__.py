"""The benchmarks made here, by name: each a function of (items, seed, corpus seed, image size) that gives rows."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from eval.benchmarks import mmbench, mme, mmstar, pope, seedbench
from prior.config import Preset
from prior.errors import UserError
from prior.files import whole

GENERATORS: dict[str, Callable[[int, int, int, int], list[dict[str, Any]]]] = {
    "MME": mme.rows,
    "POPE": pope.rows,
    "MMBench": mmbench.rows,
    "MMStar": mmstar.rows,
    "SEEDBench": seedbench.rows,
}
# Questions that come in pairs, one to be answered with yes and one with no: there are no options to rank.
YES_NO = {"MME", "POPE"}
# With fewer items a category would have no question.
FEWEST = {
    "MME": 2 * len(mme.CATEGORIES),
    "POPE": 2 * len(pope.CATEGORIES),
    "MMBench": len(mmbench.PLAN),
    "MMStar": len(mmstar.PLAN),
    "SEEDBench": len(seedbench.PLAN),
}


def check_benchmarks(preset: Preset) -> None:
    """Refuse settings with which a benchmark made here cannot be made or answered; others are their rules' matter.

    Raises
    ------
    UserError
        Naming the setting and its remedy.
    """
    for name, entry in preset.benchmarks.items():
        where = f"preset '{preset.name}': benchmarks.{name}"
        if name in GENERATORS and preset.corpus.kind != "scenes":
            raise UserError(f"{where}: it is made from generated scenes; use `corpus.kind: scenes` or leave it out")
        if name in YES_NO and entry.answer == "likelihood":
            raise UserError(f"{where}.answer: likelihood ranks options, but there are none; write `answer: generate`")
        if entry.items < FEWEST.get(name, 1):
            raise UserError(f"{where}.items: {entry.items} cannot fill every category; ask for {FEWEST[name]} or more")


def write_tsv(rows: Sequence[dict[str, Any]] | pd.DataFrame, path: str | Path) -> None:
    """Write a benchmark as VLMEvalKit reads it: tab-separated UTF-8 with a header, pictures as base64 text."""
    with whole(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, sep="\t", index=False, encoding="utf-8", quoting=csv.QUOTE_MINIMAL)
