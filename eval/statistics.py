"""Means, differences and ratios over seeds with their intervals, and accuracies against chance over seeds and items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from eval.results import BASELINE, Score, arms, by_seed, largest, select
from prior.config import Statistics
from prior.errors import UserError


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval over `n` seeds. Bounds are NaN where the data cannot give them."""

    estimate: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def mean_interval(values: Sequence[float] | np.ndarray | pd.Series, confidence: float) -> Interval:
    """Mean of `values` (one per seed) with Student's t interval; one value has no interval (NaN bounds)."""
    data = np.asarray(values, dtype=float)
    if len(data) == 0:
        raise ValueError("there are no values to average")
    centre, half = float(data.mean()), float("nan")
    if len(data) > 1:
        half = float(stats.t.ppf((1 + confidence) / 2, len(data) - 1) * data.std(ddof=1) / np.sqrt(len(data)))
    return Interval(centre, centre - half, centre + half, len(data))


def paired_difference(ours: pd.Series, base: pd.Series, confidence: float) -> Interval:
    """Mean over seeds of ``ours - base`` with its t interval; both are indexed by seed.

    Raises
    ------
    UserError
        If one arm has a seed that the other lacks.
    """
    ours, base = _pair(ours, base)
    return mean_interval(ours - base, confidence)


def relative_improvement(ours: pd.Series, base: pd.Series, confidence: float) -> Interval:
    """Ratio of means minus one, ``mean(ours) / mean(base) - 1``, with Fieller's interval for paired seeds.

    The bounds are the ratios ρ for which a paired t test of ``ours - ρ·base`` is just significant (Fieller, 1954).
    They are NaN with one seed, and where `base` cannot be told from zero, since the interval is then unbounded.
    """
    ours, base = _pair(ours, base)
    n, x, y = len(base), base.to_numpy(float), ours.to_numpy(float)
    mean_x, mean_y = x.mean(), y.mean()
    ratio = float(mean_y / mean_x) if mean_x != 0 else float("nan")
    low = high = float("nan")
    if n > 1:
        (var_x, cov), (_, var_y) = np.cov(x, y) / n
        t2 = stats.t.ppf((1 + confidence) / 2, n - 1) ** 2
        # ρ solves  a·ρ² - 2b·ρ + c = 0.
        a, b, c = mean_x**2 - t2 * var_x, mean_x * mean_y - t2 * cov, mean_y**2 - t2 * var_y
        if a > 0:
            root = np.sqrt(max(b**2 - a * c, 0.0))
            low, high = float((b - root) / a - 1), float((b + root) / a - 1)
    return Interval(ratio - 1, low, high, n)


def bootstrap_accuracy(items: pd.DataFrame, settings: Statistics) -> Interval:
    """Accuracy (percent) of one arm on one benchmark, with a percentile interval over seeds and items.

    All seeds answer the same questions, so each resample draws seeds and, independently, groups of items (columns
    `seed`, `group`, `correct`), and takes the accuracy on their intersection (Owen, 2007, "pigeonhole bootstrap").
    With one seed the interval covers the choice of items alone.

    Raises
    ------
    UserError
        If a seed lacks items that another seed answered.
    """
    right = items.pivot_table(index="seed", columns="group", values="correct", aggfunc="sum")
    asked = items.pivot_table(index="seed", columns="group", values="correct", aggfunc="count")
    if asked.isna().any(axis=None) or (asked.nunique() > 1).any():
        raise UserError(
            "items.parquet: the seeds of one arm answered different questions; predict and score them again"
        )
    sums, counts = right.to_numpy(float), asked.to_numpy(float)
    rng = np.random.default_rng(settings.seed)
    seeds, groups = sums.shape
    draw_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=settings.resamples).astype(float)
    draw_groups = rng.multinomial(groups, np.full(groups, 1 / groups), size=settings.resamples).astype(float)
    hits = ((draw_seeds @ sums) * draw_groups).sum(axis=1)
    total = ((draw_seeds @ counts) * draw_groups).sum(axis=1)
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(100 * hits / total, [tail, 1 - tail])
    return Interval(float(100 * sums.sum() / counts.sum()), float(low), float(high), seeds)


@dataclass(frozen=True)
class Verdict:
    """Whether a benchmark can tell models apart at this scale, and why (not)."""

    testable: bool
    reason: str


def testable(metrics: pd.DataFrame, score: Score, settings: Statistics) -> dict[str, Verdict]:
    """Per architecture: does NTP at the largest scale do better on `score` than answers that need no picture?

    NTP's interval over seeds must lie above the score expected from guessing, above the mean of every row of constant
    answers, and above the mean of the same model without its picture. Otherwise the benchmark is not testable, whatever
    PRIOR does. What a few draws of random answers happen to score counts only where their expectation is unknown.
    """
    where = {"benchmark": score.benchmark, "metric": score.metric}
    degenerate = select(metrics, arch=BASELINE, **where).groupby("objective").value.mean()
    rows = select(largest(metrics), **where)
    verdicts: dict[str, Verdict] = {}
    for arch in dict.fromkeys(arch for arch, _ in arms(metrics)):
        ntp = by_seed(rows, arch=arch, objective="ntp", picture="with")
        blind = by_seed(rows, arch=arch, objective="ntp", picture="without")
        if ntp.empty or blind.empty or degenerate.empty:
            lacking = (
                "NTP" if ntp.empty else "NTP without its picture" if blind.empty else "random and constant answers"
            )
            verdicts[arch] = Verdict(False, f"not testable: no scores of {lacking}")
            continue
        bars = {name.replace("_", " "): float(value) for name, value in degenerate.items()}
        if np.isfinite(score.chance):
            bars = {"guessing": score.chance} | {k: bar for k, bar in bars.items() if k != "random"}
        bars["without picture"] = float(blind.mean())
        interval = mean_interval(ntp, settings.confidence)
        beaten_by = [f"{name} ({bar:.1f})" for name, bar in bars.items() if not interval.low > bar]
        if interval.n == 1:
            verdicts[arch] = Verdict(False, "not testable: one seed gives no interval")
        elif beaten_by:
            reason = f"not testable: NTP's lower bound {interval.low:.1f} is not above {', '.join(beaten_by)}"
            verdicts[arch] = Verdict(False, reason)
        else:
            reason = f"testable: NTP's lower bound {interval.low:.1f} is above {max(bars.values()):.1f}"
            verdicts[arch] = Verdict(True, reason)
    return verdicts


def _pair(ours: pd.Series, base: pd.Series) -> tuple[pd.Series, pd.Series]:
    odd = sorted(set(ours.index) ^ set(base.index))
    if odd or ours.empty:
        seeds = ", ".join(f"seed{seed}" for seed in odd) or "every seed"
        raise UserError(f"metrics: {seeds} is missing on one side of a paired comparison; run and score it")
    return ours.sort_index(), base.sort_index()
