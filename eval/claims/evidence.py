"""What speaks for or against a claim: a statistic of paired trainings with its interval and its p."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from eval.statistics import Interval, over_seeds, relative_improvement, sign_flip
from eval.study import Study
from prior.errors import UserError

UNIT = ["arch", "scale_tokens", "seed"]
PAIRS = "pairs of trainings"


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


def pairs(rows: pd.DataFrame, ours: str = "prior", base: str = "ntp") -> tuple[pd.Series, pd.Series]:
    """The values of two objectives, each indexed by arch, scale_tokens and seed.

    Parameters
    ----------
    rows
        Columns arch, objective, scale_tokens, seed, value: one row for each.

    Raises
    ------
    UserError
        If a seed of one of them is missing: the mean would be over fewer pairs than it seems.
    """
    table = rows[rows.objective.isin([ours, base])].pivot(index=UNIT, columns="objective", values="value")
    table = table.reindex(columns=[ours, base])
    cells = dict.fromkeys(table.index.droplevel("seed"))
    seeds = sorted(set(table.index.get_level_values("seed")))
    table = table.reindex(pd.MultiIndex.from_tuples([(*cell, seed) for cell in cells for seed in seeds], names=UNIT))
    lacking = table.isna()
    if lacking.any(axis=None):
        arch, scale, seed = table.index[lacking.any(axis=1)][0]
        objective = ours if lacking[ours].any() else base
        raise UserError(f"{arch}/{objective}/{scale}/seed{seed} is missing beside the other seeds; run and score it")
    return table[ours], table[base]


def mean_of(units: pd.Series, study: Study, of: str = PAIRS, note: str = "") -> Evidence:
    """The mean of units, indexed by ``seed`` besides, against zero."""
    interval = over_seeds(units, study.settings.confidence)
    return _evidence(interval, sign_flip(units, study.settings.seed), len(units), of, note)


def ratio_of(ours: pd.Series, base: pd.Series, study: Study, of: str = PAIRS, note: str = "") -> Evidence:
    """By how many percent the mean of `ours` is above that of `base`; p of their difference."""
    found = relative_improvement(by_seed(ours), by_seed(base), study.settings.confidence)
    percent = Interval(100 * found.estimate, 100 * found.low, 100 * found.high, found.n)
    return _evidence(percent, sign_flip(ours - base, study.settings.seed), len(ours), of, note)


def by_seed(units: pd.Series) -> pd.Series:
    """The mean of each seed's units."""
    return units.groupby(level="seed").mean()


def _evidence(interval: Interval, p: float, n: int, of: str, note: str) -> Evidence:
    return Evidence(interval.estimate, interval.low, interval.high, p, n, of, interval.n, note)
