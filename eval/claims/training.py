"""Evidence from losses and from the course of training: scaling, data, stability, loss on each kind of token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from eval.claims.evidence import UNIT, Evidence, by_seed, mean_of, pairs
from eval.fits.forms import FORMULAS, fit_curve, needed
from eval.fits.robust import exponents
from eval.results import HELDOUT, arms, final, select
from eval.scaling import quantities
from eval.statistics import relative_improvement, sign_flip
from eval.study import Missing, Study
from prior.errors import UserError

CURVES = "pairs of curves"


def heldout(study: Study, metric: str) -> Evidence:
    """PRIOR − NTP, held-out loss with the picture (nats per token), over settings, scales and seeds."""
    rows = select(final(study.compared), picture="with", benchmark=HELDOUT, metric=metric)
    if rows.empty:
        raise Missing("that loss was not measured, or it is not known which tokens the picture decides")
    ours, base = pairs(rows)
    return mean_of(ours - base, study)


def exponent(study: Study, quantity: str) -> Evidence:
    """PRIOR − NTP, exponent b of A·x^−b, each seed's own fit; over settings and seeds."""
    ours, base = pairs(_exponents(_curves(study, quantity)))
    return mean_of(ours - base, study, CURVES)


def data_efficiency(study: Study) -> Evidence:
    """How many times its data NTP needs for PRIOR's benchmark error at the largest scale.

    exp(log(y_NTP / y_PRIOR) / b_NTP), of the seeds' means of both, with Fieller's interval; p of log(y_NTP / y_PRIOR).
    """
    grids = _curves(study, "error")
    last = pd.concat([_rows(arm, values.iloc[:, -1]) for arm, values in grids.items()])
    ours, base = pairs(last)
    gain, slope = np.log(base / ours), pairs(_exponents(grids))[1]
    found = relative_improvement(by_seed(gain), by_seed(slope), study.settings.confidence)
    with np.errstate(over="ignore"):
        value, low, high = (float(np.exp(bound + 1)) for bound in (found.estimate, found.low, found.high))
    p = sign_flip(gain, study.settings.seed)
    evidence = Evidence(value, low, high, p, len(gain), CURVES, found.n)
    if not slope.mean() > 0:
        return replace(
            evidence, fixed="NTP's error does not fall with data: no amount of it would make up for anything"
        )
    return evidence


def predictability(study: Study) -> Evidence:
    """PRIOR − NTP, by how many percent the power law through the other scales misses the largest one's error."""
    grids = _curves(study, "error", spare=1)
    missed = []
    for arm, values in grids.items():
        x = values.columns.to_numpy(float)
        predicted = [fit_curve(x[:-1], row[:-1])(x[-1:])[0] for row in values.to_numpy(float)]
        missed.append(_rows(arm, 100 * np.abs(np.log(predicted / values.iloc[:, -1]))))
    ours, base = pairs(pd.concat(missed))
    return mean_of(ours - base, study, CURVES)


def jitter(study: Study) -> Evidence:
    """log(PRIOR / NTP) of the variance of the unweighted training loss about its local trend."""
    values = _trainings(study, lambda run: _mean(run[run.loss_variance.notna()]))
    ours, base = pairs(values)
    if not ((ours > 0) & (base > 0)).all():
        raise Missing("a training was too short for its loss to have a variance about its trend")
    return mean_of(np.log(ours / base), study)


def spikes(study: Study) -> Evidence:
    """PRIOR − NTP, spikes of the gradient's norm in a thousand steps."""
    values = _trainings(study, lambda run: 1000 * run.spikes.sum() / max(run.judged.sum(), 1))
    ours, base = pairs(values)
    return mean_of(ours - base, study)


def whole(units: pd.DataFrame, study: Study, what: str) -> pd.DataFrame:
    """The rows, one for each run, if every compared run has one.

    Raises
    ------
    UserError
        Naming the first that lacks one.
    """
    keys = ["objective", *UNIT]
    models = study.compared[study.compared.scale_tokens > 0]
    expected = {key for key in models[keys].drop_duplicates().itertuples(index=False, name=None)}
    expected = {key for key in expected if key[0] in set(units.objective)}
    if lacking := sorted(expected - set(units[keys].itertuples(index=False, name=None))):
        objective, arch, scale, seed = lacking[0]
        raise UserError(f"{what}: lacks {arch}/{objective}/{scale}/seed{seed}; gather it again")
    return units


def _mean(bins: pd.DataFrame) -> float:
    """The variance of all steps, from that of bins of them."""
    return float((bins.loss_variance * bins.steps).sum() / max(bins.steps.sum(), 1))


def _trainings(study: Study, of: Callable[[pd.DataFrame], float]) -> pd.DataFrame:
    """A number of each compared training's bins."""
    table = study.table("training")
    table = table[table.objective.isin(["ntp", "prior"])].astype({"arch": str, "objective": str})
    keys = ["objective", *UNIT]
    values = pd.DataFrame(
        [(*key, float(of(run))) for key, run in table.groupby(keys, observed=True)], columns=[*keys, "value"]
    )
    return whole(values, study, "training.parquet")


def _curves(study: Study, quantity: str, spare: int = 0) -> dict[tuple[str, str], pd.DataFrame]:
    """Of each arm the values by seed (rows) and scale (columns), where there are scales enough for a power law."""
    table = quantities(study.compared).get(quantity)
    if table is None:
        raise Missing("no benchmark was asked" if quantity == "error" else "that loss was not measured")
    least, there = needed("power") + spare, table.scale_tokens.nunique()
    if there < least:
        why = f"{FORMULAS['power']} needs {needed('power')} data scales" + (" beside the largest" if spare else "")
        raise Missing(f"{why}, this preset has {there - spare}")
    if not (table.value > 0).all():
        raise Missing("an error or loss is zero, so it has no logarithm")
    grids = {}
    for arch, objective in arms(table):
        rows = select(table, arch=arch, objective=objective)
        grids[arch, objective] = rows.pivot(index="seed", columns="scale_tokens", values="value").sort_index(axis=1)
    return grids


def _exponents(grids: dict[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    found = []
    for arm, values in grids.items():
        b = exponents(values.columns.to_numpy(float), values.to_numpy(float))
        found.append(_rows(arm, pd.Series(b, index=values.index)))
    return pd.concat(found)


def _rows(arm: tuple[str, str], values: pd.Series) -> pd.DataFrame:
    """The values of an arm by seed, as `pairs` takes them; curves go over all scales, and stand at none."""
    rows = values.rename("value").rename_axis("seed").reset_index()
    return rows.assign(arch=arm[0], objective=arm[1], scale_tokens=0)
