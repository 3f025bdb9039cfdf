"""The main table: benchmarks, averages and gains over NTP at the largest scale, beside degenerate answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eval import style
from eval.display import Display, arm_rows, name, number, seeds, spread, tokens
from eval.outcomes.dots import dot, objectives_of
from eval.results import BASELINE, Score, arms, averaged, averages, by_seed, scores, select
from eval.statistics import Interval, mean_interval, paired_difference, relative_improvement, testable
from eval.study import Missing, Study
from prior.config import Statistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = [
    *("arch", "objective", "picture", "scale_tokens", "quantity", "kind"),
    *("value", "low", "high", "seeds", "unit", "note"),
]
DEGENERATE = {"random": 0, "always_yes": 1, "always_no": 2, "always_A": 3}
CORRECTED = "0 guessing, 1 perfect"
TESTABLE = "corrected average, testable columns only"


def table(study: Study) -> pd.DataFrame:
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

    Absent columns are left out.

    Raises
    ------
    Missing
        If the preset asks no benchmark.
    """
    metrics, settings = study.compared, study.settings
    columns, rows = scores(metrics, study.items), study.last
    records: list[dict[str, Any]] = []
    if not columns:
        raise Missing("this preset asks no benchmark")
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
    for objective in sorted(set(baseline.objective), key=lambda habit: (DEGENERATE.get(habit, 9), habit)):
        key = {"arch": BASELINE, "objective": objective, "picture": "without", "scale_tokens": 0}
        records += _model_rows(select(baseline, objective=objective), baseline[:0], columns, key, settings, False)
    for bound in ("chance", "best"):
        values = {score.label: getattr(score, bound) for score in columns}
        values["raw"] = float(np.mean([values[score.label] for score in averaged(columns)]))
        values["corrected"] = float(bound == "best")
        for quantity, value in values.items():
            kind = "bound" if quantity not in ("raw", "corrected") else "average"
            exact = Interval(value, np.nan, np.nan, 0)
            key = {"arch": "bound", "objective": bound, "picture": "", "scale_tokens": 0}
            records.append(_record(key, quantity, kind, exact, ""))
    for score in columns:
        for arch, verdict in verdicts[score.label].items():
            key = {"arch": arch, "objective": "ntp", "picture": "with", "scale_tokens": scale}
            answer = Interval(float(verdict.testable), np.nan, np.nan, 0)
            records.append(_record(key, score.label, "testable", answer, "yes/no") | {"note": verdict.reason})
    for claim in study.paper.claims.itertuples():
        # The paper's average is over its own six benchmarks: beside another benchmark it would mislead.
        if claim.claim == "relative_improvement" and claim.arch in set(rows.arch) and columns[0].in_paper:
            key = {"arch": claim.arch, "objective": "prior", "picture": "with", "scale_tokens": 0}
            told = Interval(float(claim.value), np.nan, np.nan, 0)
            records.append(_record(key, "relative", "paper", told, "percent") | {"note": claim.source})
    return pd.DataFrame(records, columns=COLUMNS)


def show(table: pd.DataFrame) -> list[Display]:
    """Scores, averages with gains, and how the models answer."""
    reported = bool((table.kind == "paper").any())
    count = seeds(table[table.arch != BASELINE])
    scale = tokens(table.scale_tokens.max())
    scored = table[table.kind.isin(["score", "bound"])]
    columns = list(dict.fromkeys(scored.quantity))
    rows = []
    for (label, _), part in arm_rows(scored):
        cells = {row.quantity: spread(row.value, row.low, row.high, 1) for row in part.itertuples()}
        rows.append({"": label} | {column: cells.get(column, "") for column in columns})
    for arch, part in table[table.kind == "testable"].groupby("arch", sort=False):
        verdict = {row.quantity: "testable" if row.value else "not testable" for row in part.itertuples()}
        rows.append({"": f"{name(str(arch))}: testable?"} | {column: verdict.get(column, "") for column in columns})
    shown = [
        Display(
            f"Benchmark scores at the largest scale ({scale} caption tokens)",
            pd.DataFrame(rows),
            f"Mean over {count} ± half the width of its t interval. MME in points, the others in percent. "
            "A benchmark is testable where NTP's interval lies above what is expected from guessing, above constant "
            "answers, and above the same model without its picture. Expected from guessing: a fair coin for yes/no, "
            "otherwise one over the number of options. That holds for MMBench too, where all rotations of a question "
            "must be right: consistent guessing, an option's text picked blindly and kept through the rotations, gets "
            "as much; the random answers guess each rotation anew.",
        ),
        Display(
            "Averages and improvement over NTP",
            _averages(table),
            f"Raw average: {table[table.quantity == 'raw'].unit.iloc[0]}, as the paper plots it (points and percent "
            "alike, so MME dominates). Corrected average: each score rescaled so that guessing gives 0 and perfection "
            "1, then averaged; beside it the same over the columns alone that are testable for the architecture. "
            "Relative improvement: ratio of raw averages minus one, paired by seed, with Fieller's interval. "
            + ("The paper's column is its abstract's average, from much larger models and data." if reported else ""),
        ),
    ]
    if (table.kind == "answers").any():
        note = "Percent. A model that says yes to everything has a yes-rate of 100; an unparsed answer counts as wrong."
        shown.append(Display("How the models answer", _answers(table), note))
    reasons = table[(table.kind == "testable") & (table.value == 0)]
    if len(reasons):
        why = [{"": f"{name(row.arch)}, {row.quantity}", "why": row.note} for row in reasons.itertuples()]
        shown.append(Display("Benchmarks that cannot tell models apart at this scale", pd.DataFrame(why)))
    return shown


def draw(table: pd.DataFrame, study: Study) -> Figure:
    """Each benchmark's score as a share of its maximum, beside guessing, constant answers and the missing picture."""
    metrics, settings = study.compared, study.settings
    columns = [score for score in scores(metrics, study.items) if np.isfinite(score.best)]
    if not columns:
        raise Missing("no benchmark has a known maximum")
    rows, pairs = study.last, sorted({arch for arch, _ in arms(metrics)})
    figure = style.figure(4.4 * len(pairs) + 0.8, 0.62 * len(columns) + 1.9)
    verdicts = {score.label: testable(metrics, score, settings) for score in columns}
    first: Axes | None = None
    for index, arch in enumerate(pairs):
        axes = figure.add_subplot(1, len(pairs), index + 1, sharex=first)
        first = first or axes
        objectives = [objective for owner, objective in arms(rows) if owner == arch]
        for place, score in enumerate(columns):
            where = {"benchmark": score.benchmark, "metric": score.metric}
            share = 100 / score.best
            for objective, part in select(metrics, arch=BASELINE, **where).groupby("objective"):
                guessed = objective == "random"
                at = share * (score.chance if guessed and np.isfinite(score.chance) else part.value.mean())
                line = "-" if guessed else style.DOTTED
                axes.plot([at, at], [place - 0.36, place + 0.36], color=style.MUTED, linestyle=line, linewidth=1.4)
            for line, objective in enumerate(objectives):
                y = place + 0.3 * (line - (len(objectives) - 1) / 2)
                for picture in ("without", "with"):
                    values = by_seed(rows, arch=arch, objective=objective, picture=picture, **where) * share
                    if len(values):
                        dot(axes, y, values, objective, settings, hollow=picture == "without", across=True)
        labels = [score.label + ("" if verdicts[score.label][arch].testable else " †") for score in columns]
        axes.set_yticks(range(len(columns)), labels)
        axes.set_ylim(len(columns) - 0.5, -0.5)
        axes.set_xlim(-3, 103)
        axes.grid(axis="y", visible=False)
        axes.set_title(name(arch))
        axes.set_xlabel("score (% of the benchmark's maximum)")
    if first is not None:
        marked = any(not verdict.testable for found in verdicts.values() for verdict in found.values())
        note = "† not testable" if marked else ""
        degenerate = [("expected from guessing", "-"), ("constant answers", style.DOTTED)]
        style.legend(figure, objectives_of([rows]), hollow="without the picture", lines=degenerate, note=note)
    scale = tokens(float(rows.scale_tokens.max()))
    style.title(figure, f"Benchmark scores beside degenerate answers ({scale} caption tokens)")
    return figure


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
    for average, values in ours.items():
        unit = f"mean of {len(averaged(columns))} raw scores" if average == "raw" else CORRECTED
        records.append(_record(key, average, "average", mean_interval(values, settings.confidence), unit))
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


def _averages(table: pd.DataFrame) -> pd.DataFrame:
    paper = {row.arch: row.value for row in table[table.kind == "paper"].itertuples()}
    rows = []
    for (label, arch), part in arm_rows(table[table.kind.isin(["average", "gain"])]):
        cells: dict[str, Any] = {"": label, "raw average": "", "corrected average": "", TESTABLE: ""}
        cells |= {"relative improvement, %": "", "corrected, minus NTP": "", "paper: improvement, %": ""}
        for row in part.itertuples():
            if (row.kind, row.quantity) == ("average", "raw"):
                cells["raw average"] = spread(row.value, row.low, row.high, 1)
            elif (row.kind, row.quantity) == ("average", "corrected"):
                cells["corrected average"] = spread(row.value, row.low, row.high, 3)
            elif row.quantity == "corrected_testable":
                cells[TESTABLE] = spread(row.value, row.low, row.high, 3)
            elif row.quantity == "relative":
                cells["relative improvement, %"] = spread(row.value, row.low, row.high, 1, sign=True, bounds=True)
            else:
                cells["corrected, minus NTP"] = spread(row.value, row.low, row.high, 3, sign=True)
            if row.objective == "prior" and row.picture == "with":
                cells["paper: improvement, %"] = number(paper.get(arch, float("nan")), 0, sign=True)
        rows.append(cells)
    shown = pd.DataFrame(rows)
    return shown[[column for column in shown if shown[column].astype(bool).any()]]


def _answers(table: pd.DataFrame) -> pd.DataFrame:
    answers = table[table.kind == "answers"]
    columns = sorted(set(answers.quantity), key=lambda quantity: (not quantity.startswith("yes"), quantity))
    rows = []
    for (label, _), part in arm_rows(answers):
        cells = {row.quantity: spread(row.value, row.low, row.high, 1) for row in part.itertuples()}
        heads = {column: column.replace("yes_rate:", "yes-rate ").replace(":", " ") for column in columns}
        rows.append({"": label} | {heads[column]: cells.get(column, "") for column in columns})
    return pd.DataFrame(rows)
