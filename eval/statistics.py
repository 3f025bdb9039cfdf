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

# Up to how many paired differences all flips of their signs are gone through, how many flips are drawn beyond, and how
# many for thousands of differences, where a tenth tells as much.
ENUMERATED, DRAWS, FEWER = 16, 100_000, 10_000


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


# Where there is no estimate.
NOTHING = Interval(float("nan"), float("nan"), float("nan"), 0)


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


def over_seeds(units: pd.Series, confidence: float) -> Interval:
    """Mean of `units`, indexed by ``seed`` and whatever else, with the t interval of the seeds' own means.

    What shares a seed shares its data and may be dependent in any way: a seed counts once, however many architectures
    and scales it was trained at. Every seed must have as many units as the others.

    Raises
    ------
    ValueError
        If a seed has fewer units.
    """
    by_seed = units.groupby(level="seed")
    if by_seed.size().nunique() > 1:
        raise ValueError("some seeds have fewer units than others")
    return mean_interval(by_seed.mean(), confidence)


def sign_flip(units: Sequence[float] | np.ndarray | pd.Series, seed: int) -> float:
    """Two-sided p of the hypothesis that each of `units`, paired differences, is as likely to have the other sign.

    Compares the absolute mean with that under flipped signs: all of them up to `ENUMERATED` units, which gives the
    exact p; beyond that `DRAWS` random ones (`FEWER` for more than a thousand units), and p = (k + 1)/(N + 1) of the k
    among N that reach the observed mean (Phipson and Smyth, 2010). The smallest p of n units is 2^(1 - n); one unit has
    none (NaN).
    """
    data = np.asarray(units, dtype=float)
    n = len(data)
    if n < 2:
        return float("nan")
    # Sums that differ by rounding alone are equal.
    bar = abs(data.sum()) - 1e-12 * np.abs(data).sum()
    if n <= ENUMERATED:
        # The last sign is held: flipping all of them leaves the absolute sum as it is.
        signs = 1 - 2 * (np.arange(2 ** (n - 1))[:, None] >> np.arange(n) & 1)
        return float(np.mean(np.abs(signs @ data) >= bar))
    rng, reached = np.random.default_rng(seed), 0
    draws = DRAWS if n <= 1000 else FEWER
    for _ in range(draws // 1000):
        reached += int((np.abs((1 - 2 * rng.integers(0, 2, (1000, n), dtype=np.int8)) @ data) >= bar).sum())
    return (reached + 1) / (draws + 1)


def holm(ps: Sequence[float] | np.ndarray | pd.Series) -> np.ndarray:
    """p values adjusted for their number by Holm (1979); a p that is NaN is no test, stays NaN and does not count."""
    raw = np.asarray(ps, dtype=float)
    adjusted = np.full(len(raw), np.nan)
    order = [place for place in np.argsort(raw, kind="stable") if np.isfinite(raw[place])]
    steps = [(len(order) - rank) * raw[place] for rank, place in enumerate(order)]
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if steps else []
    return adjusted


def crossed_accuracy(items: pd.DataFrame, confidence: float) -> Interval:
    """Accuracy (percent) of one arm on one benchmark, with an interval for other seeds and other items.

    All seeds answer the same questions, so that seeds and groups of items (columns `seed`, `group`, `correct`) are
    crossed random effects. Their variances come from the mean squares of a two-way layout, one that comes out negative
    being zero; the interval is Student's with Satterthwaite's degrees of freedom (1946), no narrower than that over the
    seeds' own accuracies where these differ by more than items explain, and cut at 0 and 100. Groups of different sizes
    enter by how far their right answers are from their share of them. With one seed the interval covers the choice of
    items alone; of a single group there is none (NaN).

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
    share = sums.sum() / counts.sum()
    half = crossed_half_width((sums - share * counts) / counts.mean(), confidence)
    # A bound that is NaN stays so.
    low, high = np.clip([share - half, share + half], 0, 1)
    return Interval(float(100 * share), float(100 * low), float(100 * high), len(sums))


def crossed_half_width(cells: np.ndarray, confidence: float) -> float:
    """Half the width of the interval of the mean of `cells`, shape (seeds, groups); NaN for a single group."""
    seeds, groups = cells.shape
    if groups == 1:
        return float("nan")
    by_seed, by_group = cells.mean(axis=1, keepdims=True), cells.mean(axis=0, keepdims=True)
    of_groups = seeds * by_group.var(ddof=1)
    of_seeds = rest = 0.0
    if seeds > 1:
        rest = ((cells - by_seed - by_group + cells.mean()) ** 2).sum() / ((seeds - 1) * (groups - 1))
        of_seeds = groups * by_seed.var(ddof=1)
    # The mean's variance is (of seeds + of groups - rest) / cells. Where one of the first two is below the rest, its
    # own variance is estimated as none, and the other is all there is.
    terms = [(of_seeds, seeds - 1), (of_groups, groups - 1), (-rest, (seeds - 1) * (groups - 1))]
    if of_seeds <= rest or of_groups <= rest:
        terms = [max(terms[:2])]
    total = sum(value for value, _ in terms)
    spread = sum(value**2 / freedom for value, freedom in terms if value)
    if spread == 0:
        return 0.0

    def quantile(freedom: float) -> float:
        return float(stats.t.ppf((1 + confidence) / 2, freedom))

    half = quantile(total**2 / spread) * np.sqrt(total)
    if of_seeds > rest:
        # Few seeds that happen to lie close together would make Satterthwaite's degrees of freedom too many.
        half = max(half, quantile(seeds - 1) * np.sqrt(of_seeds))
    return float(half / np.sqrt(cells.size))


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
