"""From evidence to a verdict: one rule, written down before the numbers, for every claim alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from eval.claims.evidence import Evidence
from eval.results import Paper
from eval.statistics import holm
from eval.study import Missing, Study

SHOWN, NOT_SHOWN, CONTRADICTED = "shown", "not shown", "contradicted"
NOT_TESTABLE = "not testable at this scale"
COLUMNS = [
    "claim",
    "statistic",
    "paper",
    "value",
    "low",
    "high",
    "n",
    "p",
    "verdict",
    "p_holm",
    "why",
    "source",
    "runs",
]


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper and what tests it.

    Attributes
    ----------
    measure
        Gives the evidence of a study; raises `Missing` where it has none.
    above
        Whether the claim is that the statistic is above `null`, or below.
    paper
        The paper's own figure in the statistic's unit, with its sign if `signed`, or what it says in words.
    source
        Which of our sources says so.
    """

    key: str
    claim: str
    statistic: str
    measure: Callable[[Study], Evidence]
    paper: str | Callable[[Paper], float]
    source: str
    above: bool = True
    null: float = 0.0
    signed: bool = False


def judge(claims: list[Claim], study: Study) -> pd.DataFrame:
    """A row for each claim, with the columns `COLUMNS`; those without a test have no p and do not count for Holm."""
    alpha = 1 - study.settings.confidence
    rows: list[dict[str, Any]] = []
    tested: list[Evidence | None] = []
    for claim in claims:
        figure = claim.paper if isinstance(claim.paper, str) else claim.paper(study.paper)
        row: dict[str, Any] = {"claim": claim.claim, "statistic": claim.statistic, "source": claim.source}
        row["paper"] = figure if isinstance(figure, str) else f"{figure:+.3g}" if claim.signed else f"{figure:.3g}"
        try:
            evidence = claim.measure(study)
        except Missing as missing:
            rows.append(row | {"verdict": NOT_TESTABLE, "why": str(missing)})
            tested.append(None)
            continue
        row |= {"value": evidence.value, "low": evidence.low, "high": evidence.high, "n": evidence.n}
        row["runs"] = evidence.runs.says(study) if evidence.runs else ""
        reason = untestable(evidence, alpha)
        row |= {"verdict": NOT_TESTABLE, "why": reason} if reason else {"p": evidence.p, "why": _why(evidence, figure)}
        rows.append(row)
        tested.append(None if reason else evidence)
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["p_holm"] = holm(table.p.astype(float))
    for place, (claim, found) in enumerate(zip(claims, tested, strict=True)):
        if found is not None:
            table.loc[place, "verdict"] = verdict(claim, found, float(table.p_holm[place]), alpha)
    numbers = ["value", "low", "high", "p", "p_holm"]
    return table.astype(dict.fromkeys(numbers, "float64") | {"n": "Int64"})


def untestable(evidence: Evidence, alpha: float) -> str:
    """Why there can be no test; empty if there can."""
    units = evidence.each or evidence.n
    least = 2.0 ** (1 - units)
    why = evidence.fixed
    if not why and evidence.groups < 2:
        why = "one seed gives no interval"
    if not why and least > alpha:
        why = f"{units} {evidence.of} give no p below {least:.2g}"
    return _joined(why, evidence.note) if why else ""


def verdict(claim: Claim, evidence: Evidence, p_holm: float, alpha: float) -> str:
    """Shown or contradicted if the interval lies on one side of the null value and the adjusted p is below `alpha`."""
    if not (p_holm < alpha and evidence.agrees):
        return NOT_SHOWN
    # An interval without bounds lies on no side.
    over, under = evidence.low > claim.null, evidence.high < claim.null
    if over or under:
        return SHOWN if over == claim.above else CONTRADICTED
    return NOT_SHOWN


def _why(evidence: Evidence, figure: str | float) -> str:
    units = f"{evidence.n} {evidence.of}"
    units += f", interval over {evidence.groups} seeds" if evidence.groups != evidence.n else ""
    said = "" if isinstance(figure, str) or not evidence.comparable else _beside(evidence, figure)
    return _joined(units, said, evidence.note)


def _beside(evidence: Evidence, figure: float) -> str:
    if not (math.isfinite(evidence.low) and math.isfinite(evidence.high)):
        return "the interval has no bounds"
    return f"the paper's figure lies {'within' if evidence.low <= figure <= evidence.high else 'outside'} the interval"


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
