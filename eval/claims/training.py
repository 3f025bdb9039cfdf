"""Evidence from losses and from the course of training: scaling, data, stability, loss on each kind of token."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from eval.claims.evidence import UNIT, Evidence, able, by_seed, mean_of, pairs, runs_of, untold
from eval.fits.forms import FORMULAS, fit_curve, needed
from eval.gather.training import bin_mean, spike_rate
from eval.results import HELDOUT, PAPERS, Score, arms, averaged, final, select
from eval.scaling import by_scale, log_ratio, quantities, seed_exponents
from eval.statistics import sign_flip
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
    found = mean_of(ours - base, study, CURVES)
    return able(found, study, _columns(study)) if quantity == "error" else found


def data_efficiency(study: Study) -> Evidence:
    """How many times its data NTP needs for PRIOR's benchmark error at the largest scale.

    exp(log(y_NTP / y_PRIOR) / b_NTP) of the seeds' means of logarithms and exponents over architectures, with Fieller's
    interval (`eval.scaling.log_ratio`); p of log(y_NTP / y_PRIOR).
    """
    grids = _curves(study, "error")
    last = pd.concat([_rows(arm, values.iloc[:, -1]) for arm, values in grids.items()])
    ours, base = (np.log(values) for values in pairs(last))
    slope = by_seed(pairs(_exponents(grids))[1])
    found = log_ratio(np.exp(by_seed(ours)), np.exp(by_seed(base)), slope, study.settings.confidence)
    if found is None:
        flat = "NTP's error does not surely fall with data: no amount of it would make up for anything"
        raise Missing(untold(study, _columns(study)) or flat)
    with np.errstate(over="ignore"):
        value, low, high = (float(np.exp(bound)) for bound in (found.estimate, found.low, found.high))
    p, runs = sign_flip(base - ours, study.settings.seed), runs_of(ours, PAPERS)
    return able(Evidence(value, low, high, p, len(ours), CURVES, found.n, runs=runs), study, _columns(study))


def predictability(study: Study) -> Evidence:
    """PRIOR − NTP, by how many percent the power law through the other scales misses the largest one's error."""
    grids = _curves(study, "error", spare=1)
    missed = []
    for arm, values in grids.items():
        x = values.columns.to_numpy(float)
        laws = {
            seed: fit_curve(x[:-1], row[:-1]) for seed, row in zip(values.index, values.to_numpy(float), strict=True)
        }
        if failed := [f"seed{seed}" for seed, law in laws.items() if not law.converged]:
            through = f"{FORMULAS['power']} through the other scales does not fit"
            raise Missing(f"{through}: {'/'.join(arm)} {', '.join(failed)} ends at its bounds")
        predicted = np.array([law(x[-1:])[0] for law in laws.values()])
        missed.append(_rows(arm, 100 * np.abs(predicted / values.iloc[:, -1] - 1)))
    ours, base = pairs(pd.concat(missed))
    return able(mean_of(ours - base, study, CURVES), study, _columns(study))


def jitter(study: Study) -> Evidence:
    """log(PRIOR / NTP) of the variance of the unweighted training loss about its local trend."""
    values = _trainings(study, lambda bins: bin_mean(bins, "loss_variance"))
    if not (values.value > 0).all():
        raise Missing("a training was too short for its loss to have a variance about its trend")
    ours, base = pairs(values)
    return mean_of(np.log(ours / base), study)


def spikes(study: Study) -> Evidence:
    """PRIOR − NTP, spikes of the gradient's norm in a thousand steps."""
    values = _trainings(study, spike_rate)
    if values.value.isna().any():
        raise Missing("a training was too short for any of its gradients to have a neighbourhood to be judged by")
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


def _trainings(study: Study, of: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """A number of each compared training, made of its bins."""
    table = study.table("training")
    # An objective that was trained at some scales alone is an ablation, PRIOR's own, too.
    objectives = set(PAPERS) & set(study.compared.objective)
    table = table[table.objective.isin(objectives)].astype({"arch": str, "objective": str})
    return whole(of(table), study, "training.parquet")


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
    ours = [arm for arm in arms(table) if arm[1] in PAPERS]
    return {arm: by_scale(select(table, arch=arm[0], objective=arm[1])) for arm in ours}


def _columns(study: Study) -> list[Score]:
    """The benchmarks whose mean error the curves are of: of the averaged ones those that were asked at every scale."""
    tables = quantities(study.compared)
    scales = tables["error"].scale_tokens.nunique()
    used = [score for score in averaged(study.columns) if f"error:{score.benchmark}" in tables]
    return [score for score in used if tables[f"error:{score.benchmark}"].scale_tokens.nunique() == scales]


def _exponents(grids: dict[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([_rows(arm, seed_exponents(values)) for arm, values in grids.items()])


def _rows(arm: tuple[str, str], values: pd.Series) -> pd.DataFrame:
    """The values of an arm by seed, as `pairs` takes them; curves go over all scales, and stand at none."""
    rows = values.rename("value").rename_axis("seed").reset_index()
    return rows.assign(arch=arm[0], objective=arm[1], scale_tokens=0)
