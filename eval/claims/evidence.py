"""What speaks for or against a claim: a statistic of paired trainings with its interval and its p."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pandas as pd

from eval.display import name, tokens
from eval.results import PAPERS, Score
from eval.statistics import Interval, over_seeds, relative_improvement, sign_flip
from eval.study import Missing, Study
from prior.errors import UserError

UNIT = ["arch", "scale_tokens", "seed"]
PAIRS = "pairs of trainings"
EVERY = "every scale"


@dataclass(frozen=True)
class Runs:
    """Which arms, at which scales (in tokens; none: at every one), a statistic is of."""

    archs: tuple[str, ...]
    objectives: tuple[str, ...]
    scales: tuple[int, ...] = ()

    def says(self, study: Study) -> str:
        """Such as ``hlvlm, ulvlm: ntp, prior; every scale``."""
        known = study.compared.scale_tokens
        whole = not self.scales or set(self.scales) == set(known[known > 0])
        where = EVERY if whole else ", ".join(tokens(scale) for scale in self.scales)
        return f"{', '.join(self.archs)}: {', '.join(self.objectives)}; {where}"


@dataclass(frozen=True)
class Evidence:
    """A statistic that tests a claim.

    Attributes
    ----------
    value, low, high
        The statistic and its interval; NaN bounds where there is none.
    p
        Two-sided p of no difference, by flipping the signs of the `n` units.
    n, of
        How many units there are, and what they are.
    groups
        Over how many independent groups of units the interval is: seeds, or captions.
    note
        What one should know beside.
    fixed
        Why the value tests nothing, if so.
    each
        How many units each test has, where there are several that must all pass; `n` where there is one.
    comparable
        Whether the paper's figure is of the same quantity.
    agrees
        Whether what `p` is of points the way that the value does.
    runs
        What it was measured on; None where no training is.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    of: str
    groups: int
    note: str = ""
    fixed: str = ""
    each: int | None = None
    comparable: bool = True
    agrees: bool = True
    runs: Runs | None = None


def pairs(rows: pd.DataFrame, ours: str = "prior", base: str = "ntp") -> tuple[pd.Series, pd.Series]:
    """The values of two objectives, each indexed by arch, scale_tokens and seed.

    Parameters
    ----------
    rows
        Columns arch, objective, scale_tokens, seed, value: one row for each.

    Raises
    ------
    Missing
        If one of them is not there at all.
    UserError
        If a seed of one of them is missing: the mean would be over fewer pairs than it seems.
    """
    for objective in (ours, base):
        if objective not in set(rows.objective):
            raise Missing(f"{name(objective)} was not trained at every scale")
    table = rows[rows.objective.isin([ours, base])].pivot(index=UNIT, columns="objective", values="value")
    cells = dict.fromkeys(table.index.droplevel("seed"))
    seeds = sorted(set(table.index.get_level_values("seed")))
    table = table.reindex(pd.MultiIndex.from_tuples([(*cell, seed) for cell in cells for seed in seeds], names=UNIT))
    lacking = table.isna()
    if lacking.any(axis=None):
        arch, scale, seed = table.index[lacking.any(axis=1)][0]
        objective = ours if lacking[ours].any() else base
        raise UserError(f"{arch}/{objective}/{scale}/seed{seed} is missing beside the other seeds; run and score it")
    return table[ours], table[base]


def mean_of(
    units: pd.Series, study: Study, of: str = PAIRS, note: str = "", objectives: Iterable[str] = PAPERS
) -> Evidence:
    """The mean of units, indexed by arch, scale_tokens and seed, against zero; `objectives` are those they are of."""
    interval = over_seeds(units, study.settings.confidence)
    p = sign_flip(units, study.settings.seed)
    return _evidence(interval, p, len(units), of, note, runs_of(units, objectives))


def ratio_of(ours: pd.Series, base: pd.Series, study: Study, of: str = PAIRS, note: str = "") -> Evidence:
    """By how many percent the mean of `ours` is above that of `base`; p of their difference."""
    found = relative_improvement(by_seed(ours), by_seed(base), study.settings.confidence)
    percent = Interval(100 * found.estimate, 100 * found.low, 100 * found.high, found.n)
    p = sign_flip(ours - base, study.settings.seed)
    return _evidence(percent, p, len(ours), of, note, runs_of(ours, PAPERS))


def by_seed(units: pd.Series) -> pd.Series:
    """The mean of each seed's units."""
    return units.groupby(level="seed").mean()


def runs_of(units: pd.Series, objectives: Iterable[str]) -> Runs:
    """The runs that units, indexed by arch, scale_tokens and seed, are of; curves, which stand at none, of all."""
    archs, scales = (sorted(set(units.index.get_level_values(level))) for level in UNIT[:2])
    return Runs(tuple(archs), tuple(objectives), tuple(scale for scale in scales if scale > 0))


def able(found: Evidence, study: Study, columns: Iterable[Score], arch: str | None = None) -> Evidence:
    """The evidence, marked where no benchmark tells models apart, in one architecture or in any."""
    return found if found.fixed else replace(found, fixed=untold(study, columns, arch))


def untold(study: Study, columns: Iterable[Score], arch: str | None = None) -> str:
    """Why none of these benchmarks tells models apart (`eval.statistics.testable`); empty if one does."""
    # Not by label: that of a benchmark depends on which others are asked beside it.
    known = {(score.benchmark, score.metric): study.testable[score.label] for score in study.columns}
    verdicts = [known[score.benchmark, score.metric] for score in columns]
    told = [verdict for each in verdicts for owner, verdict in each.items() if arch in (None, owner)]
    if any(verdict.testable for verdict in told):
        return ""
    why = dict.fromkeys(verdict.reason.removeprefix("not testable: ") for verdict in told)
    said = next(iter(why)) if len(why) == 1 else "NTP does no better than answers that need no picture"
    return f"no benchmark can tell models apart: {said}"


def _evidence(interval: Interval, p: float, n: int, of: str, note: str, runs: Runs) -> Evidence:
    return Evidence(interval.estimate, interval.low, interval.high, p, n, of, interval.n, note, runs=runs)
