"""The numbers of every table, tidy: one row per arm and quantity. How they are laid out is in `eval.display`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eval import display, hallucination, sources
from eval.results import (
    BASELINE,
    HELDOUT,
    Paper,
    Score,
    arms,
    averaged,
    by_seed,
    check_metrics,
    final,
    guessing,
    largest,
    scores,
    select,
)
from eval.scaling import DEVIATION
from eval.statistics import (
    Interval,
    bootstrap_accuracy,
    mean_interval,
    paired_difference,
    relative_improvement,
    testable,
)
from eval.words import extremes, reference_quality, show, show_quality
from prior.config import Statistics
from prior.files import whole, write_text

MAIN_COLUMNS = [
    *("arch", "objective", "picture", "scale_tokens", "quantity", "kind"),
    *("value", "low", "high", "seeds", "unit", "note"),
]
LOSSES = {"loss_relevant": "relevant", "loss_other": "other", "loss": "all"}
DEGENERATE = {"random": 0, "always_yes": 1, "always_no": 2, "always_A": 3}
CORRECTED = "0 guessing, 1 perfect"
NOTHING = Interval(float("nan"), float("nan"), float("nan"), 0)


def main_table(metrics: pd.DataFrame, items: pd.DataFrame, settings: Statistics, paper: Paper) -> pd.DataFrame:
    """The main table at the largest scale, tidy.

    Columns: arch, objective, picture, scale_tokens, quantity, kind, value, low, high, seeds, unit, note. `kind` is

    ``score``
        a benchmark column; mean over seeds with its t interval,
    ``average``
        ``raw`` (the paper's: mean of raw scores), ``corrected`` (mean after 0 = guessing, 1 = perfect), or
        ``corrected_testable`` (the same over the columns that are testable for this architecture),
    ``gain``
        ``relative`` (percent over NTP's raw average, Fieller) or ``corrected`` (minus NTP's), paired by seed,
    ``answers``
        ``yes_rate:<benchmark>`` and ``unparsed:<benchmark>``, percent,
    ``bound``
        what is expected from guessing (`objective` chance; see `eval.results.scores`) and perfection (best) gives,
    ``testable``
        1 or 0 per architecture and column, with the reason in `note`,
    ``paper``
        what the paper reported.

    Presets without benchmarks give an empty table; absent columns are left out.
    """
    check_metrics(metrics)
    columns, rows = scores(metrics, items), largest(metrics)
    records: list[dict[str, Any]] = []
    if not columns:
        return pd.DataFrame(columns=MAIN_COLUMNS)
    scale = int(rows.scale_tokens.max())
    verdicts = {score.label: testable(metrics, score, settings) for score in columns}
    for arch, objective in arms(metrics):
        for picture in ("with", "without"):
            part = select(rows, arch=arch, objective=objective, picture=picture)
            base = select(rows, arch=arch, objective="ntp", picture=picture)
            key = {"arch": arch, "objective": objective, "picture": picture, "scale_tokens": scale}
            records += _model_rows(part, base, columns, key, settings, compare=objective != "ntp")
            passed = [score for score in averaged(columns) if verdicts[score.label][arch].testable]
            values = averages(part, passed).get("corrected") if passed else None
            if values is not None:
                mean = mean_interval(values, settings.confidence)
                records.append(_record(key, "corrected_testable", "average", mean, CORRECTED))
    baseline = metrics[metrics.arch == BASELINE]
    for objective in sorted(set(baseline.objective), key=lambda name: (DEGENERATE.get(name, 9), name)):
        key = {"arch": BASELINE, "objective": objective, "picture": "without", "scale_tokens": 0}
        records += _model_rows(select(baseline, objective=objective), baseline[:0], columns, key, settings, False)
    for name in ("chance", "best"):
        values = {score.label: getattr(score, name) for score in columns}
        values["raw"] = float(np.mean([values[score.label] for score in averaged(columns)]))
        values["corrected"] = float(name == "best")
        for quantity, value in values.items():
            kind = "bound" if quantity not in ("raw", "corrected") else "average"
            exact = Interval(value, np.nan, np.nan, 0)
            key = {"arch": "bound", "objective": name, "picture": "", "scale_tokens": 0}
            records.append(_record(key, quantity, kind, exact, ""))
    for score in columns:
        for arch, verdict in verdicts[score.label].items():
            key = {"arch": arch, "objective": "ntp", "picture": "with", "scale_tokens": scale}
            answer = Interval(float(verdict.testable), np.nan, np.nan, 0)
            records.append(_record(key, score.label, "testable", answer, "yes/no") | {"note": verdict.reason})
    for claim in paper.claims.itertuples():
        # The paper's average is over its own six benchmarks: beside another benchmark it would mislead.
        if claim.claim == "relative_improvement" and claim.arch in set(rows.arch) and columns[0].in_paper:
            key = {"arch": claim.arch, "objective": "prior", "picture": "with", "scale_tokens": 0}
            told = Interval(float(claim.value), np.nan, np.nan, 0)
            records.append(_record(key, "relative", "paper", told, "percent") | {"note": claim.source})
    return pd.DataFrame(records, columns=MAIN_COLUMNS)


def loss_table(metrics: pd.DataFrame, settings: Statistics) -> pd.DataFrame:
    """Held-out caption loss (nats/token) of every arm and scale, on relevant, other and all tokens.

    Columns: arch, objective, scale_tokens, picture, tokens, value, low, high, seeds, gain, gain_low, gain_high, where
    `gain` is the difference to NTP, paired by seed (negative: lower loss than NTP).
    """
    rows = select(final(check_metrics(metrics)), benchmark=HELDOUT)
    records = []
    for metric, tokens in LOSSES.items():
        for arch, objective in arms(metrics):
            for scale in sorted(set(rows.scale_tokens)):
                for picture in ("with", "without"):
                    where = {"arch": arch, "scale_tokens": scale, "picture": picture, "metric": metric}
                    values = by_seed(rows, objective=objective, **where)
                    if values.empty:
                        continue
                    mean, gain = mean_interval(values, settings.confidence), NOTHING
                    base = by_seed(rows, objective="ntp", **where)
                    if objective != "ntp" and len(base):
                        gain = paired_difference(values, base, settings.confidence)
                    key = {"arch": arch, "objective": objective, "scale_tokens": scale, "picture": picture}
                    spread = {"value": mean.estimate, "low": mean.low, "high": mean.high, "seeds": mean.n}
                    more = {"gain": gain.estimate, "gain_low": gain.low, "gain_high": gain.high}
                    records.append(key | {"tokens": tokens} | spread | more)
    names = ["arch", "objective", "scale_tokens", "picture", "tokens", "value", "low", "high", "seeds"]
    return pd.DataFrame(records, columns=[*names, "gain", "gain_low", "gain_high"])


def accuracy_table(metrics: pd.DataFrame, items: pd.DataFrame, settings: Statistics) -> pd.DataFrame:
    """Share of right answers (percent) at the largest scale against guessing, bootstrapped over seeds and items.

    Columns: arch, objective, picture, benchmark, value, low, high, seeds, items, chance, above_chance; degenerate rows
    come last. Every item counts for itself (MMBench: every rotation), so `chance` is one over the number of options.
    Benchmarks that have no accuracy are left out.
    """
    items = items[items.benchmark.isin(select(metrics, metric="accuracy").benchmark)]
    names = ["arch", "objective", "picture", "benchmark", "value", "low", "high", "seeds", "items"]
    records = []
    groups = list(largest(items).groupby(names[:4])) if len(items) else []
    groups += list(select(items, arch=BASELINE).groupby(names[:4]))
    for (arch, objective, picture, benchmark), part in groups:
        spread, chance = bootstrap_accuracy(part, settings), guessing(metrics, benchmark)
        key = {"arch": arch, "objective": objective, "picture": picture, "benchmark": benchmark}
        value = {"value": spread.estimate, "low": spread.low, "high": spread.high, "seeds": spread.n}
        count = {"items": part.item.nunique(), "chance": chance, "above_chance": spread.low > chance}
        records.append(key | value | count)
    return pd.DataFrame(records, columns=[*names, "chance", "above_chance"])


def fits_table(fits: list[dict[str, Any]]) -> pd.DataFrame:
    """The records of ``fits.json`` as a table, one row per fit or difference of exponents."""
    records = []
    for fit in fits:
        law = fit.get("mean_fit") or {}
        key = {name: fit[name] for name in ("kind", "arch", "objective", "quantity", "form")}
        exponent = {name: fit["exponent"][name] for name in ("estimate", "low", "high", "n")}
        records.append(
            key
            | exponent
            | {name: law.get(name) for name in "AbE"}
            | {DEVIATION: fit.get(DEVIATION), "refused": fit["refused"] or ""}
        )
    columns = [
        "kind",
        "arch",
        "objective",
        "quantity",
        "form",
        "estimate",
        "low",
        "high",
        "n",
        "A",
        "b",
        "E",
        DEVIATION,
        "refused",
    ]
    numbers = {name: float for name in ("estimate", "low", "high", "A", "b", "E", DEVIATION)}
    return pd.DataFrame(records, columns=columns).astype(numbers)


def all_tables(
    metrics: pd.DataFrame,
    items: pd.DataFrame,
    fits: list[dict[str, Any]],
    settings: Statistics,
    paper: Paper,
    words: pd.DataFrame | None = None,
    quality: dict[str, Any] | None = None,
    asked: pd.DataFrame | None = None,
) -> dict[str, tuple[pd.DataFrame, list[display.Display]]]:
    """Every table by name: its tidy numbers and how to show them. Tables without rows are left out."""
    tables = {
        "main": (main := main_table(metrics, items, settings, paper), display.main(main)),
        "losses": (losses := loss_table(metrics, settings), display.losses(losses)),
        "hallucination": (
            captions := hallucination.hallucination_table(metrics, settings),
            hallucination.show(captions),
        ),
        "accuracy": (accuracy := accuracy_table(metrics, items, settings), display.accuracy(accuracy)),
        "fits": (laws := fits_table(fits), display.fits(laws)),
    }
    if words is not None:
        tables["words"] = (ranked := extremes(words), show(ranked))
    if quality is not None:
        tables["reference"] = (known := reference_quality(quality), show_quality(known))
    if asked is not None:
        tables["benchmarks"] = (found := sources.sources_table(asked, metrics), sources.show(found))
    return {name: table for name, table in tables.items() if len(table[0])}


def write_tables(
    metrics: pd.DataFrame,
    items: pd.DataFrame,
    fits: list[dict[str, Any]],
    settings: Statistics,
    paper: Paper,
    folder: str | Path,
    words: pd.DataFrame | None = None,
    quality: dict[str, Any] | None = None,
    asked: pd.DataFrame | None = None,
) -> list[Path]:
    """Write ``<name>.csv`` and ``<name>.md`` of every table into `folder`; return the paths."""
    paths = []
    for name, (table, shown) in all_tables(metrics, items, fits, settings, paper, words, quality, asked).items():
        path = Path(folder) / f"{name}.csv"
        with whole(path) as temporary:
            # Ten digits: beyond the last place where machines agree there is nothing to read.
            table.to_csv(temporary, index=False, float_format="%.10g", lineterminator="\n")
        write_text(path.with_suffix(".md"), display.markdown(shown))
        paths += [path, path.with_suffix(".md")]
    return paths


def averages(rows: pd.DataFrame, columns: list[Score]) -> dict[str, pd.Series]:
    """Raw and chance-corrected averages by seed of one arm's rows; absent where one of the columns is."""
    used = averaged(columns)
    values = {score.label: by_seed(rows, benchmark=score.benchmark, metric=score.metric) for score in used}
    if any(series.empty for series in values.values()):
        return {}
    raw = pd.DataFrame(values)
    found = {"raw": raw.mean(axis=1)}
    if all(np.isfinite(score.chance) and np.isfinite(score.best) for score in used):
        chance = pd.Series({score.label: score.chance for score in used})
        best = pd.Series({score.label: score.best for score in used})
        found["corrected"] = ((raw - chance) / (best - chance)).mean(axis=1)
    return found


def _model_rows(
    part: pd.DataFrame,
    base: pd.DataFrame,
    columns: list[Score],
    key: dict[str, Any],
    settings: Statistics,
    compare: bool,
) -> list[dict[str, Any]]:
    """Scores, averages, gains over NTP and answering habits of one arm."""
    records = []
    for score in columns:
        where = {"benchmark": score.benchmark, "metric": score.metric}
        values = by_seed(part, **where)
        if len(values):
            unit = str(select(part, **where).unit.iloc[0])
            records.append(_record(key, score.label, "score", mean_interval(values, settings.confidence), unit))
    ours = averages(part, columns)
    for name, values in ours.items():
        unit = f"mean of {len(averaged(columns))} raw scores" if name == "raw" else CORRECTED
        records.append(_record(key, name, "average", mean_interval(values, settings.confidence), unit))
    theirs = averages(base, columns) if compare else {}
    if "raw" in ours and "raw" in theirs:
        ratio = relative_improvement(ours["raw"], theirs["raw"], settings.confidence)
        percent = Interval(100 * ratio.estimate, 100 * ratio.low, 100 * ratio.high, ratio.n)
        records.append(_record(key, "relative", "gain", percent, "percent"))
    if "corrected" in ours and "corrected" in theirs:
        gap = paired_difference(ours["corrected"], theirs["corrected"], settings.confidence)
        records.append(_record(key, "corrected", "gain", gap, CORRECTED))
    for metric in ("yes_rate", "unparsed"):
        for benchmark, rows in part[part.metric == metric].groupby("benchmark"):
            percent_unit = rows.unit.iloc[0] == "percent"
            habit = mean_interval(rows.value * (1 if percent_unit else 100), settings.confidence)
            records.append(_record(key, f"{metric}:{benchmark}", "answers", habit, "percent"))
    return records


def _record(key: dict[str, Any], quantity: str, kind: str, spread: Interval, unit: str) -> dict[str, Any]:
    value = {"value": spread.estimate, "low": spread.low, "high": spread.high, "seeds": spread.n}
    return key | {"quantity": quantity, "kind": kind} | value | {"unit": unit, "note": ""}
