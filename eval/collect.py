"""From the files of single runs to ``metrics.csv`` and ``items.parquet``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from eval.results import ITEM_COLUMNS, METRIC_COLUMNS
from prior.config import Preset, parse_tokens


def collect(results: Path, preset: Preset, measures: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every measured number of a preset, sorted by its keys.

    Parameters
    ----------
    measures
        The files of the scoring jobs: ``measures/<name>.csv`` and ``.parquet``.

    Returns
    -------
    (metrics, items)
        With the columns of the artefact contract.
    """
    folder = results / "measures"
    metrics = [_heldout(results, run) for run in preset.runs()]
    metrics += [pd.read_csv(folder / f"{name}.csv") for name in measures]
    items = [pd.read_parquet(folder / f"{name}.parquet") for name in measures]
    empty = pd.DataFrame(columns=ITEM_COLUMNS)
    return (
        _sorted(pd.concat(metrics, ignore_index=True), METRIC_COLUMNS),
        _sorted(pd.concat(items, ignore_index=True) if items else empty, ITEM_COLUMNS),
    )


def _heldout(results: Path, run: str) -> pd.DataFrame:
    """The losses of one run on held-out captions, at every step at which they were measured."""
    arch, objective, scale, seed = run.split("/")
    folder = results / "runs" / run / "pretrain"
    description = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    assert description["scale"] == scale
    return pd.read_csv(folder / "heldout.csv").assign(
        arch=arch,
        objective=objective,
        scale_tokens=parse_tokens(scale),
        seed=int(seed.removeprefix("seed")),
        stage="pretrain",
        benchmark="heldout",
        unit="nats/token",
    )


def _sorted(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    keys = [column for column in columns if column not in ("value", "n_items", "unit")]
    return table[columns].sort_values(keys, kind="stable", ignore_index=True)
