"""Stored files that do not belong together, or of which something is gone: refused in one line, never averaged over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from eval.results import BASELINE, HELDOUT, KEYS, PAPERS, RUN
from eval.stored import FITS, ITEMS, METRICS, PROVENANCE, TABLES
from prior.config import Preset, parse_run, parse_tokens
from prior.errors import UserError

# What results read of each stored table.
NEEDED = {
    "benchmarks": ["benchmark", "source", "answer", "rows", "md5"],
    "words": ["caption", "word", "p_r", "weight", "relevant", "word_class"],
    "tokens": ["caption", "p_r", "relevant", "word_class"],
    "mutual": [*RUN, "judge", "unit", "group", "by", "bin", "n", "w", "weight", "mi", "gain", "rho_w", "rho_gain"],
    "training": [
        *RUN,
        "bin",
        "first_step",
        "last_step",
        "steps",
        "tokens",
        "loss",
        "loss_variance",
        "judged",
        "spikes",
    ],
    "costs": ["stage", "arch", "objective", "scale_tokens", "jobs", "gpus", "tokens", "flops", "seconds", "remark"],
}
# A share of what models happen to say: its number of items is their own.
SAID = "chair_i"
CELL = RUN[:3]
SERIES = [*RUN, "stage", "picture", "benchmark", "metric"]


def check_preset(metrics: pd.DataFrame, preset: Preset) -> None:
    """Refuse the numbers of another preset, and runs of this one that have none.

    An arm or scale that this preset has not would be passed over in silence, and a mean over fewer seeds than it has
    pass for a mean over all.
    """
    runs = [parse_run(name) for name in preset.runs()]
    expected = {(run.arch, run.objective, parse_tokens(run.scale), run.seed) for run in runs}
    found = set(_models(metrics)[RUN].itertuples(index=False, name=None))
    for what, names in (("not in", found - expected), ("missing, though in", expected - found)):
        if names:
            raise UserError(
                f"{METRICS}: {_runs(names)}: {what} preset '{preset.name}'; name the preset that these results are of, "
                "or run it"
            )


def check_whole(metrics: pd.DataFrame) -> None:
    """Refuse numbers that lack a checkpoint or an answer that others have, beyond what `check_metrics` asks.

    Every seed of an arm is measured at as many steps as the others, NTP and PRIOR at the same ones; a score is over as
    many items whoever is asked; degenerate answers have all metrics of their benchmark, and as many draws in each.
    """
    models = _models(metrics)
    steps = models.groupby(SERIES).step.agg(["nunique", "max"])
    counts = steps["nunique"].groupby([name for name in SERIES if name != "seed"])
    pairs = steps[steps.index.get_level_values("objective").isin(PAPERS) & (steps["nunique"] > 1)]["nunique"]
    between = pairs.groupby([name for name in SERIES if name != "objective"])
    for group, values in ((counts, steps["nunique"]), (between, pairs)):
        short = values[values < group.transform("max")]
        if len(short):
            run = dict(zip(SERIES, short.index[0], strict=True))
            raise UserError(
                f"{METRICS}: {_run(run)} lacks a checkpoint of {run['benchmark']} {run['metric']} that others have; "
                "predict and score it"
            )
    asked = metrics[~metrics.metric.str.startswith(SAID)]
    usual = asked.groupby(["benchmark", "metric"]).n_items.transform(lambda counts: counts.mode().iloc[0])
    if len(odd := asked[asked.n_items != usual]):
        row = odd.iloc[0]
        raise UserError(
            f"{METRICS}: {_run(row)}: {row.benchmark} {row.metric} is over {row.n_items} items, others are over "
            f"{usual[odd.index[0]]}; predict and score it again"
        )
    for benchmark, rows in metrics[metrics.arch == BASELINE].groupby("benchmark"):
        wide = rows.pivot_table(index=["objective", "seed"], columns="metric", values="value", aggfunc="size")
        if wide.isna().any(axis=None):
            objective, seed = wide.index[wide.isna().any(axis=1)][0]
            metric = wide.columns[wide.loc[(objective, seed)].isna()][0]
            raise UserError(f"{METRICS}: {benchmark} {metric} of {objective}/seed{seed} is missing; score it again")


def check_items(metrics: pd.DataFrame, items: pd.DataFrame) -> None:
    """Refuse answers of other checkpoints than were scored, and checkpoints that answered other questions."""
    scored = metrics.loc[metrics.metric == "accuracy", KEYS].drop_duplicates()
    asked = items[KEYS].drop_duplicates()
    beside = scored.merge(asked, how="outer", on=KEYS, indicator=True)
    of_these = beside.benchmark.isin(scored.benchmark)
    for side, what in (("left_only", f"is in {METRICS} alone"), ("right_only", f"is in {ITEMS} alone")):
        if len(odd := beside[of_these & (beside._merge == side)]):
            row = odd.iloc[0]
            raise UserError(f"{ITEMS}: {_run(row)}: {row.benchmark} {what}; collect both anew")
    for benchmark, rows in items.groupby("benchmark"):
        answers = rows.groupby("item").size()
        checkpoints = int((asked.benchmark == benchmark).sum())
        if len(odd := answers[answers != checkpoints]):
            raise UserError(
                f"{ITEMS}: {benchmark}: question {odd.index[0]} was answered {odd.iloc[0]} times by {checkpoints} "
                "checkpoints; predict and score them again with the same questions"
            )


def check_stored(stored: Mapping[str, pd.DataFrame], metrics: pd.DataFrame) -> None:
    """Refuse tables without a column that results read, and those of other runs than the metrics."""
    runs = set(_models(metrics)[RUN].itertuples(index=False, name=None))
    for name, table in stored.items():
        if lacking := [column for column in NEEDED[name] if column not in table.columns]:
            raise UserError(f"{TABLES[name]}: lacks the column {', '.join(lacking)}; gather it again with this version")
        if len(table) and set(RUN) <= set(NEEDED[name]):
            _alike(name, set(table[RUN].drop_duplicates().itertuples(index=False, name=None)), runs)
    if "costs" in stored:
        spent = stored["costs"][stored["costs"].stage == "pretrain"]
        spent = spent.astype({"scale_tokens": int})
        _alike("costs", set(spent[CELL].itertuples(index=False, name=None)), {run[:3] for run in runs})
    if "benchmarks" in stored:
        asked = set(metrics.benchmark) - {HELDOUT}
        _alike("benchmarks", {(name,) for name in stored["benchmarks"].benchmark}, {(name,) for name in asked})


def check_provenance(provenance: Mapping[str, Any], preset: Preset) -> None:
    """Refuse descriptions of other runs than the preset's, and runs without one; none at all is said elsewhere."""
    expected = {f"runs/{run}/{stage}" for run in preset.runs() for stage in preset.stages}
    if provenance and (odd := sorted(expected ^ set(provenance))):
        what = "is missing" if odd[0] in expected else f"is not in preset '{preset.name}'"
        raise UserError(f"{PROVENANCE}: {odd[0]} {what}; gather it again")


def check_fits(records: Any, metrics: pd.DataFrame) -> None:
    """Refuse fits of other arms or scales than the metrics have."""
    models = _models(metrics)
    arms = set(zip(models.arch, models.objective, strict=True))
    scales = set(models.scale_tokens)
    whole = isinstance(records, list) and all(isinstance(record, dict) for record in records)
    for record in records if whole else []:
        if (record.get("arch"), record.get("objective")) not in arms or not set(record.get("scales", [])) <= scales:
            whole = False
    if not whole:
        raise UserError(f"{FITS}: not the fits of {METRICS}; fit again")


def _alike(name: str, found: set[tuple[Any, ...]], expected: set[tuple[Any, ...]]) -> None:
    """Refuse a table whose runs, or beginnings of such, or benchmarks are not those of the metrics."""
    for what, odd in (("is not in", found - expected), ("is missing, though in", expected - found)):
        if odd:
            raise UserError(f"{TABLES[name]}: {_runs(odd)} {what} {METRICS}; gather it again")


def _models(metrics: pd.DataFrame) -> pd.DataFrame:
    return metrics[metrics.arch != BASELINE]


def _run(row: Mapping[str, Any] | pd.Series) -> str:
    return f"{row['arch']}/{row['objective']}/{row['scale_tokens']}/seed{row['seed']}"


def _runs(names: Iterable[tuple[Any, ...]]) -> str:
    first = sorted(names)
    more = f" and {len(first) - 3} more" if len(first) > 3 else ""
    return (
        ", ".join("/".join([*map(str, name[:3]), *(f"seed{seed}" for seed in name[3:])]) for name in first[:3]) + more
    )
