"""The benchmarks made here, by name: each a function of (items, seed, corpus seed, image size) that gives rows."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from eval.benchmarks import mmbench, mme, mmstar, pope, seedbench
from prior.files import whole

GENERATORS: dict[str, Callable[[int, int, int, int], list[dict[str, Any]]]] = {
    "MME": mme.rows,
    "POPE": pope.rows,
    "MMBench": mmbench.rows,
    "MMStar": mmstar.rows,
    "SEEDBench": seedbench.rows,
}


def write_tsv(rows: Sequence[dict[str, Any]] | pd.DataFrame, path: str | Path) -> None:
    """Write a benchmark as VLMEvalKit reads it: tab-separated UTF-8 with a header, pictures as base64 text."""
    with whole(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, sep="\t", index=False, encoding="utf-8", quoting=csv.QUOTE_MINIMAL)
