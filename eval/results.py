"""Reading and checking what evaluation left behind: ``metrics.csv``, ``items.parquet`` and the paper's numbers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from prior.errors import UserError

RUN = ["arch", "objective", "scale_tokens", "seed"]
KEYS = [*RUN, "stage", "step", "picture", "benchmark"]
METRIC_COLUMNS = [*KEYS, "metric", "value", "n_items", "unit"]
ITEM_COLUMNS = [*KEYS, "item", "group", "category", "correct", "answer", "prediction", "parsed"]
STAGES = {"none": 0, "pretrain": 1, "tuned": 2}
BASELINE = "baseline"
# The objectives that the paper compares.
PAPERS = ("ntp", "prior")
HELDOUT = "heldout"

# MME's own division of its categories; each is worth up to 200 points (accuracy + accuracy+).
PERCEPTION = {"OCR", "artwork", "celebrity", "color", "count", "existence", "landmark", "position", "posters", "scene"}
REASONING = {"code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation"}


@dataclass(frozen=True)
class Score:
    """A column of the main table: which metric it shows and what guessing and perfection would give.

    `chance` is the expectation of guessing, `best` the maximum, both in the unit of the metric; NaN if unknown.
    """

    label: str
    benchmark: str
    metric: str
    chance: float
    best: float
    in_paper: bool = True


@dataclass(frozen=True)
class Paper:
    """What the paper reported: `claims` (claim, arch, value, unit, source), `trajectory` (step, ntp, prior, source)."""

    claims: pd.DataFrame
    trajectory: pd.DataFrame


def read_metrics(path: str | Path) -> pd.DataFrame:
    """Read and check ``metrics.csv``.

    Raises
    ------
    UserError
        If the file is missing, lacks a column, repeats a key, holds something that is not a number, or lacks a seed.
    """
    table = _read_csv(path)
    numbers = {"scale_tokens": "int64", "seed": "int64", "step": "int64", "value": "float64", "n_items": "int64"}
    return check_metrics(_typed(table, METRIC_COLUMNS, numbers, Path(path).name), Path(path).name)


def read_items(path: str | Path) -> pd.DataFrame:
    """Read and check ``items.parquet``."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; run the scoring stage first")
    try:
        items = pd.read_parquet(path)
    except (OSError, ValueError):
        raise UserError(f"{path.name}: cannot be read as a table; delete it and collect it again") from None
    return _typed(items, ITEM_COLUMNS, {"scale_tokens": "int64", "seed": "int64", "step": "int64"}, path.name)


def read_paper(folder: str | Path) -> Paper:
    """Read the paper's numbers from ``claims.csv`` and ``figure1_average_trajectory.csv`` in `folder`."""
    folder = Path(folder)
    claims = _typed(_read_csv(folder / "claims.csv"), ["claim", "arch"], {"value": "float64"}, "claims.csv")
    name = "figure1_average_trajectory.csv"
    numbers = {"step": "int64", "ntp": "float64", "prior": "float64"}
    return Paper(claims, _typed(_read_csv(folder / name), ["source"], numbers, name))


def check_metrics(metrics: pd.DataFrame, name: str = "metrics") -> pd.DataFrame:
    """Refuse values that are not numbers, repeated keys, and arms that lack a seed; return the table unchanged.

    Every objective of every architecture must have the same seeds wherever one of them has a number: a mean over
    fewer seeds would pass for a mean over all. An ablation need not be at every scale; at which it has to be knows the
    preset (`eval.study.read_study`).

    Raises
    ------
    UserError
        Naming the first offending rows.
    """
    bad = metrics[~np.isfinite(metrics.value)]
    if len(bad):
        raise UserError(f"{name}: the value of {_name(bad.iloc[0])} is not a number; score that checkpoint again")
    twice = metrics[metrics.duplicated([*KEYS, "metric"])]
    if len(twice):
        raise UserError(f"{name}: {_name(twice.iloc[0])} occurs more than once; score into an empty folder")
    models = metrics[metrics.arch != BASELINE]
    if models.empty:
        raise UserError(f"{name}: there is no row of a model; evaluate a checkpoint first")
    seeds = sorted(set(models.seed))
    last = final(metrics)
    scales = last.groupby(["arch", "objective"]).scale_tokens.agg(set).to_dict()
    missing: list[str] = []
    group = ["scale_tokens", "stage", "picture", "benchmark", "metric"]
    for (scale, _, picture, benchmark, metric), rows in last.groupby(group):
        have = set(zip(rows.arch, rows.objective, rows.seed, strict=True))
        missing += [
            f"{arch}/{objective}/{scale}/seed{seed} ({benchmark} {metric}, {picture} picture)"
            for (arch, objective), seed in product(scales, seeds)
            if (arch, objective, seed) not in have and (scale in scales[arch, objective] or objective == "ntp")
        ]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"{name}: missing {', '.join(missing[:3])}{more}; run and score these, or drop the seed everywhere"
        )
    return metrics


def final(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the models' last checkpoint: per benchmark its latest stage, per run that stage's last step.

    A run that ends earlier than NTP's with the same data, as an ablation may, is no rival of finished ones: left out.
    """
    models = table[table.arch != BASELINE]
    stage = models.stage.map(STAGES)
    models = models[stage == stage.groupby(models.benchmark).transform("max")]
    models = models[models.step == models.groupby([*RUN, "stage"]).step.transform("max")]
    data = ["arch", "scale_tokens", "seed", "stage"]
    ends = models[models.objective == "ntp"].groupby(data).step.max().rename("end")
    end = models.join(ends, on=data).end
    return models[end.isna() | (models.step == end)]


def largest(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `final` at the largest data scale."""
    last = final(table)
    return last[last.scale_tokens == last.scale_tokens.max()]


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the objectives that were trained on as many scales as NTP, and of the baselines: no ablations."""
    models = table[(table.arch != BASELINE) & (table.scale_tokens > 0)]
    scales = models.groupby(["arch", "objective"]).scale_tokens.nunique()
    whole = [key for key, count in scales.items() if count >= scales.get((key[0], "ntp"), 0)]
    arm = pd.MultiIndex.from_frame(table[["arch", "objective"]])
    return table[arm.isin(whole) | (table.arch == BASELINE)]


def select(table: pd.DataFrame, **where: object) -> pd.DataFrame:
    """Rows whose columns equal the given values."""
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def by_seed(table: pd.DataFrame, **where: object) -> pd.Series:
    """The values of one arm, indexed and sorted by seed; empty if there is no such row.

    Raises
    ------
    ValueError
        If `where` leaves more than one row per seed.
    """
    values = select(table, **where).set_index("seed").value.sort_index()
    if values.index.has_duplicates:
        raise ValueError(f"{where} does not single out one value per seed")
    return values


def arms(table: pd.DataFrame) -> list[tuple[str, str]]:
    """(architecture, objective) pairs: architectures in alphabetical order, NTP first, PRIOR second."""
    models = table[table.arch != BASELINE]
    first = {"ntp": 0, "prior": 1}
    pairs = set(zip(models.arch, models.objective, strict=True))
    return sorted(pairs, key=lambda arm: (arm[0], first.get(arm[1], 2), arm[1]))


def scores(metrics: pd.DataFrame, items: pd.DataFrame) -> list[Score]:
    """The benchmark columns that `metrics` holds, the paper's six first, with what guessing would give.

    MME's maximum depends on how many of its categories are asked, which `items` knows; what guessing gives where there
    are options depends on how many there are (`guessing`).
    """
    asked = set(items[items.benchmark == "MME"].category.astype(str)) if len(items) else set()
    perception, reasoning = len(asked & PERCEPTION) or np.nan, len(asked & REASONING) or np.nan
    known = [
        # A coin is right on half the questions and on both questions of a quarter of the pictures: 50 + 25 points.
        Score("MME-P", "MME", "perception", 75 * perception, 200 * perception),
        Score("MME-R", "MME", "reasoning", 75 * reasoning, 200 * reasoning),
        Score("MMStar", "MMStar", "accuracy", guessing(metrics, "MMStar"), 100),
        Score("POPE (F1)", "POPE", "f1", 50, 100),
    ]
    # Those made here and the official ones. Circular scoring wants all k rotations of a question right: independent
    # guesses would manage that with (1/k)^k, but who picks an option's text and keeps it through the rotations, seeing
    # nothing, is right once in k questions.
    for short, official in (("MMBench", "MMBench_DEV_EN"), ("SEEDBench", "SEEDBench_IMG")):
        label = official if short in set(metrics.benchmark) else short
        known += [Score(short, short, "accuracy", guessing(metrics, short), 100)]
        known += [Score(label, official, "accuracy", guessing(metrics, official), 100)]
    present = set(zip(metrics.benchmark, metrics.metric, strict=True))
    extra = sorted(set(metrics.benchmark) - {score.benchmark for score in known} - {HELDOUT})
    known += [Score(name, name, "accuracy", guessing(metrics, name), 100, in_paper=False) for name in extra]
    return [score for score in known if (score.benchmark, score.metric) in present]


def guessing(metrics: pd.DataFrame, benchmark: str) -> float:
    """The share of questions (percent) that one uniform guess each gets right: its metric ``chance``, NaN if absent."""
    known = select(metrics, benchmark=benchmark, metric="chance").value
    return float(known.iloc[0]) if len(known) else float("nan")


def averaged(columns: list[Score]) -> list[Score]:
    """The columns that enter the average: the paper's where there are any, else all."""
    return [score for score in columns if score.in_paper] or columns


def averages(rows: pd.DataFrame, columns: list[Score]) -> dict[str, pd.Series]:
    """Raw and chance-corrected averages by seed of one arm's rows; absent, or NaN for a seed, where a column is."""
    used = averaged(columns)
    values = {score.label: by_seed(rows, benchmark=score.benchmark, metric=score.metric) for score in used}
    if any(series.empty for series in values.values()):
        return {}
    raw = pd.DataFrame(values)
    found = {"raw": raw.mean(axis=1, skipna=False)}
    if all(np.isfinite(score.chance) and np.isfinite(score.best) for score in used):
        chance = pd.Series({score.label: score.chance for score in used})
        best = pd.Series({score.label: score.best for score in used})
        found["corrected"] = ((raw - chance) / (best - chance)).mean(axis=1, skipna=False)
    return found


def _read_csv(path: str | Path) -> pd.DataFrame:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; run the stage that writes it first")
    try:
        # Everything as text: an answer or a stage called "None" is a word, not a missing number.
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError):
        raise UserError(f"{path.name}: not a CSV table; delete it and run the stage that writes it again") from None


def _typed(table: pd.DataFrame, columns: list[str], numbers: dict[str, str], name: str) -> pd.DataFrame:
    missing = [column for column in dict.fromkeys([*columns, *numbers]) if column not in table.columns]
    if missing:
        raise UserError(f"{name}: lacks the column {', '.join(missing)}; write it again with this version")
    table = table.copy()
    for column, kind in numbers.items():
        values = pd.to_numeric(table[column], errors="coerce")
        if values.isna().any() and kind == "int64":
            row = int(np.flatnonzero(values.isna())[0])
            raise UserError(
                f"{name}: row {row + 2}, {column}: '{table[column].iloc[row]}' is not a number; score again"
            )
        table[column] = values.astype(kind)
    return table


def _name(row: pd.Series) -> str:
    run = f"{row.arch}/{row.objective}/{row.scale_tokens}/seed{row.seed}/{row.stage}/step{row.step}"
    return f"{run} {row.benchmark} {row.metric} ({row.picture} picture)"
