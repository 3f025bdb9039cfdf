"""How often the intervals of scaling curves hold the truth, in simulated studies with a study's own seeds and noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from eval.display import Display, markdown, name
from eval.fits.forms import fit_curve
from eval.fits.robust import critical_t, exponents, floor_t, huber_lines, odds_difference_t, odds_t, shared_exponents
from eval.results import arms, check_metrics, compared, read_metrics, select
from eval.scaling import by_scale, chances, log_ratio, quantities
from eval.statistics import mean_interval, paired_difference
from prior.errors import UserError
from prior.files import whole, write_text

# What an interval of 95 % may cover here.
TARGET = (0.935, 0.965)
ARMS = ("objective", "ntp")
# An interval that fewer studies are given is not judged.
USUAL = 0.5
STATISTICS = {
    "b": "exponent b",
    "difference": "difference of exponents",
    "shared": "shared exponent",
    "ratio": "data ratio",
    "E": "floor E",
}


def coverage(
    metrics: Annotated[Path, typer.Option(help="metrics.csv of a study, whose curves and noise are simulated.")],
    out: Annotated[Path, typer.Option(help="Folder of coverage.csv and coverage.md.")],
    # So many that 95 % is counted to ± 0.4 %, and what falls outside the target is not chance.
    studies: Annotated[int, typer.Option(min=100, help="Simulated studies for each row.")] = 10_000,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999)] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the simulated noise.")] = 0,
) -> None:
    """Simulate studies whose truth is known, and count how often each interval holds it."""
    table = simulate(read_metrics(metrics), studies, confidence, seed)
    with whole(out / "coverage.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n", float_format="%.6g")
    write_text(out / "coverage.md", markdown([show(table, confidence)]))


def simulate(metrics: pd.DataFrame, studies: int, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Coverage for each pair of an objective and NTP, quantity and statistic.

    The truth of a simulated study is the curve of a form through the measured means of either arm; for E, the curve
    whose floor is half of the smallest mean. Its noise is Gaussian in log space with the measured covariance over
    scales and both arms: seeds differ, and what they have in common they have in common here, too.

    Columns: arch, objective, quantity, form, statistic, arm (the objective's own, NTP's, or both), truth (NaN where the
    measured means are not of this form, so that there is nothing to simulate), studies, seeds, scales, given (share of
    studies that are given an interval; NaN for score tests, of which only the truth is asked whether it is accepted),
    coverage (share of those that hold the truth).
    """
    checked = check_metrics(compared(metrics))
    guesses = chances(checked)
    records: list[dict[str, Any]] = []
    for quantity, table in quantities(checked).items():
        for arch, objective in arms(table):
            if objective == "ntp":
                continue
            ours, base = (by_scale(select(table, arch=arch, objective=which)) for which in (objective, "ntp"))
            if len(base) < 2 or base.shape[1] < 5:
                raise UserError(
                    f"coverage: {quantity} has {base.shape[1]} scales and {len(base)} seeds; 5 and 2 are needed"
                )
            key = {"arch": arch, "objective": objective, "quantity": quantity}
            common = {"studies": studies, "seeds": len(base), "scales": base.shape[1]}
            rng = np.random.default_rng([seed, len(records)])
            for found in _pair(ours, base, guesses.get(quantity), studies, confidence, rng):
                records.append(key | found | common)
    names = ["arch", "objective", "quantity", "form", "statistic", "arm", "truth"]
    return pd.DataFrame(records)[[*names, "studies", "seeds", "scales", "given", "coverage"]]


def noise(ours: pd.DataFrame, base: pd.DataFrame, studies: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian deviations of log values, (studies, seeds, 2·scales), with the covariance of two arms' seeds."""
    logs = np.log(np.hstack([ours.to_numpy(float), base.to_numpy(float)]))
    deviations = logs - logs.mean(axis=0)
    seeds = len(logs)
    return rng.standard_normal((studies, seeds, seeds)) @ deviations / np.sqrt(seeds - 1)


def _pair(
    ours: pd.DataFrame,
    base: pd.DataFrame,
    chance: float | None,
    studies: int,
    confidence: float,
    rng: np.random.Generator,
) -> Iterator[dict[str, Any]]:
    x, names = base.columns.to_numpy(float), list(base.index)
    scales, limit = len(x), critical_t(len(base), confidence)
    off = noise(ours, base, studies, rng)
    apart = off[..., :scales], off[..., scales:]
    means = [np.exp(np.log(values.to_numpy(float)).mean(axis=0)) for values in (ours, base)]

    def record(form: str, statistic: str, arm: str, truth: float, inside: Any, given: Any = np.nan) -> dict[str, Any]:
        shares = {"given": float(np.mean(given)), "coverage": float(np.mean(inside))}
        return {"form": form, "statistic": statistic, "arm": arm, "truth": truth} | shares

    laws = [fit_curve(x, mean) for mean in means]
    values = [law(x) * np.exp(part) for law, part in zip(laws, apart, strict=True)]
    b = [exponents(x, part) for part in values]
    for arm, (law, found) in enumerate(zip(laws, b, strict=True)):
        spans = [mean_interval(row, confidence) for row in found]
        yield record("power", "b", ARMS[arm], law.b, [span.low <= law.b <= span.high for span in spans])
    frames = [[pd.Series(row, index=names) for row in found] for found in b]
    gap = laws[0].b - laws[1].b
    spans = [paired_difference(mine, theirs, confidence) for mine, theirs in zip(*frames, strict=True)]
    yield record("power", "difference", "both", gap, [span.low <= gap <= span.high for span in spans])
    alike = laws[1](x) * np.exp(apart[0])
    spans = [mean_interval(row, confidence) for row in shared_exponents(x, alike, values[1])]
    yield record("power", "shared", "both", laws[1].b, [span.low <= laws[1].b <= span.high for span in spans])
    truth = float(np.log(laws[1](x[-1:]) / laws[0](x[-1:]))[0] / laws[1].b)
    last = [[pd.Series(row, index=names) for row in part[..., -1]] for part in values]
    ratios = [log_ratio(mine, theirs, slope, confidence) for mine, theirs, slope in zip(*last, frames[1], strict=True)]
    held = [span.low <= truth <= span.high for span in ratios if span]
    yield record("power", "ratio", "both", float(np.exp(truth)), held or np.nan, [span is not None for span in ratios])
    for arm, mean in enumerate(means):
        floor = float(mean.min() / 2)
        a, slope = huber_lines(np.stack([np.ones(scales), -np.log(x)], axis=1), np.log(mean - floor))
        curve = floor + np.exp(a) * x**-slope
        t = floor_t(x, curve * np.exp(apart[arm]), np.full(studies, floor))
        yield record("power_floor", "E", ARMS[arm], floor, np.abs(t) <= limit)
    if chance is None or not chance < 1:
        return
    laws = [fit_curve(x, mean, "odds", chance) for mean in means]
    values = [law(x) * np.exp(part) for law, part in zip(laws, apart, strict=True)]
    for arm, law in enumerate(laws):
        if not law.converged:
            yield record("odds", "b", ARMS[arm], np.nan, np.nan)
            continue
        t = odds_t(x, values[arm], chance, np.full(studies, law.b))
        yield record("odds", "b", ARMS[arm], law.b, np.abs(t) <= limit)
    if not all(law.converged for law in laws):
        yield record("odds", "difference", "both", np.nan, np.nan)
        return
    gap = laws[0].b - laws[1].b
    t = odds_difference_t(x, values[0], values[1], chance, np.full(studies, gap))
    yield record("odds", "difference", "both", gap, np.abs(t) <= limit)


def show(table: pd.DataFrame, confidence: float) -> Display:
    """The least, mean and greatest coverage of each statistic, over architectures and quantities."""
    rows = []
    low, high = (f"{100 * bound:.1f}" for bound in TARGET)
    # Of an interval that few studies get, those that get it are no sample of all.
    seldom = table.given < USUAL
    lacking = table.truth.isna()
    for (form, kind), part in table[~seldom & ~lacking].groupby(["form", "statistic"], sort=False):
        within = part.coverage.between(*TARGET)
        cells = {"form": name(str(form)), "interval of": STATISTICS[str(kind)], "simulated": f"{len(part)} settings"}
        cells |= {
            label: f"{100 * value:.1f} %"
            for label, value in (
                ("least", part.coverage.min()),
                ("mean", part.coverage.mean()),
                ("greatest", part.coverage.max()),
            )
        }
        rows.append(cells | {f"{low} to {high} %": f"{within.sum()} of {len(part)}"})
    first = table.iloc[0]
    note = (
        f"{first.studies:,} simulated studies for each setting (architecture, quantity, arm), with the {first.seeds} "
        f"seeds and {first.scales} scales, the curves and the noise of the study itself; each line: share of studies "
        f"whose {100 * confidence:.0f} % interval holds the truth."
    )
    outside = table[~seldom & ~lacking & ~table.coverage.between(*TARGET)]
    if len(outside):
        note += f" Outside {low} to {high} %: {_listed(outside, 'coverage')}."
    if seldom.any():
        note += (
            f" Left out, since fewer than {100 * USUAL:.0f} % of the studies are given the interval at all: "
            f"{_listed(table[seldom], 'given')}."
        )
    if lacking.any():
        note += f" Not simulated, since the measured means are not of that form: {_listed(table[lacking])}."
    return Display("Coverage of the intervals of scaling curves", pd.DataFrame(rows), note)


def _listed(table: pd.DataFrame, share: str = "") -> str:
    return "; ".join(
        f"{STATISTICS[row.statistic]} ({name(row.form)}) of {name(row.arch)}, {name(row.quantity)}"
        + (f" ({100 * getattr(row, share):.1f} %)" if share else "")
        for row in table.itertuples()
    )
