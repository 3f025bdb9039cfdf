"""From the files of single runs to ``metrics.csv`` and ``items.parquet``."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import yaml

from eval.results import ITEM_COLUMNS, METRIC_COLUMNS
from prior.config import Preset, parse_tokens


def collect(results: Path, preset: Preset) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every measured number of a preset, sorted by its keys.

    Returns
    -------
    (metrics, items)
        With the columns of the artefact contract.
    """
    metrics = [_heldout(results, run) for run in preset.runs()]
    items = []
    if preset.benchmarks:
        arms = sorted({run.rsplit("/", 2)[0] for run in preset.runs()})
        for arm in ["baseline", *arms]:
            metrics.append(pd.read_csv(results / "measures" / f"{arm}.csv"))
            items.append(pd.read_parquet(results / "measures" / f"{arm}.parquet"))
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
