"""Everything that the results of a preset are made from: its stored files, read and checked once.

These files are small, so that results can be made anew anywhere, without models, corpus or GPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from eval.checks import check_fits, check_items, check_preset, check_provenance, check_stored, check_whole
from eval.results import Paper, Score, check_metrics, compared, largest, read_items, read_metrics, read_paper, scores
from eval.statistics import Verdict, testable
from eval.stored import ITEMS, METRICS, PROVENANCE, QUALITY, TABLES
from prior.config import Objective, Preset, Statistics
from prior.errors import UserError


class Missing(Exception):
    """Why a result cannot be given for this preset; it is shown in the result's place."""


@dataclass(frozen=True)
class Study:
    """A preset's stored numbers.

    Attributes
    ----------
    metrics, items, paper
        As `eval.results` reads and checks them.
    fits
        The records of ``fits.json``; empty before they are made.
    alphas
        α of every objective that has one; NTP is α = 0.
    stored
        The tables of `eval.stored.TABLES` that are there, by name; `table` gives one, or says what is missing.
    quality
        The reference LLM's quality, the content of ``reference.json``; None if it is not there.
    provenance
        The ``run.yaml`` of every run and stage, by ``runs/{run}/{stage}``; empty if it is not there.
    """

    preset: str
    settings: Statistics
    metrics: pd.DataFrame
    items: pd.DataFrame
    paper: Paper
    fits: list[dict[str, Any]] = field(default_factory=list)
    alphas: Mapping[str, float] = field(default_factory=lambda: {"ntp": 0.0, "prior": 1.0})
    stored: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    quality: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_metrics(self.metrics)

    def table(self, name: str) -> pd.DataFrame:
        """One of `eval.stored.TABLES`.

        Raises
        ------
        Missing
            If it is not stored, or is empty.
        """
        found = self.stored.get(name)
        if found is None or found.empty:
            raise Missing(f"there is no {TABLES[name]} with this preset's results, or nothing in it")
        return found

    @cached_property
    def compared(self) -> pd.DataFrame:
        """`metrics` of the objectives that were trained at every scale: without ablations."""
        return compared(self.metrics)

    @cached_property
    def last(self) -> pd.DataFrame:
        """The last checkpoints at the largest scale, of `compared`."""
        return largest(self.compared)

    @cached_property
    def columns(self) -> list[Score]:
        """The benchmark columns of `compared`."""
        return scores(self.compared, self.items)

    @cached_property
    def testable(self) -> dict[str, dict[str, Verdict]]:
        """By label of a column and architecture, whether the benchmark tells models apart."""
        return {score.label: testable(self.compared, score, self.settings) for score in self.columns}


def read_study(folder: Path, preset: Preset, paper: Path, fits: Path | None = None) -> Study:
    """Read the files of `folder`, a preset's results or what was published of them.

    Raises
    ------
    UserError
        If ``metrics.csv`` or ``items.parquet`` is missing, or one of the files is not whole or not this preset's.
    """
    metrics, items = read_metrics(folder / METRICS), read_items(folder / ITEMS)
    check_preset(metrics, preset)
    check_whole(metrics)
    check_items(metrics, items)
    stored = {name: _read(folder / file) for name, file in TABLES.items() if (folder / file).is_file()}
    check_stored(stored, metrics)
    laws = _load(fits) if fits else []
    check_fits(laws, metrics)
    provenance = _load(folder / PROVENANCE) if (folder / PROVENANCE).is_file() else {}
    check_provenance(provenance, preset)
    return Study(
        preset=preset.name,
        settings=preset.statistics,
        metrics=metrics,
        items=items,
        paper=read_paper(paper),
        fits=laws,
        alphas={name: alpha for name, entry in preset.objectives.items() if (alpha := alpha_of(entry)) is not None},
        stored=stored,
        quality=_load(folder / QUALITY) if (folder / QUALITY).is_file() else None,
        provenance=provenance,
    )


def alpha_of(objective: Objective) -> float | None:
    """α of an objective of the kinds ``ntp`` (0) and ``prior`` (1 by default); None of another kind."""
    if objective.kind == "ntp":
        return 0.0
    return float(objective.parameters().get("alpha", 1.0)) if objective.kind == "prior" else None


# The C parser, where there is one, reads hundreds of runs in a tenth of the time.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError):
        raise UserError(f"{path}: cannot be read as a table; delete it and run the stage that writes it") from None


def _load(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.load(text, _Loader)
    except (OSError, ValueError, yaml.YAMLError):
        raise UserError(f"{path}: cannot be read; delete it and run the stage that writes it") from None
