"""Curves of held-out loss and benchmark error against caption tokens: each arm's fits and how objectives compare.

The records of ``fits.json`` all have `kind`, `arch`, `objective`, `quantity` (`quantities`), `form` (`eval.fits.forms`)
and `refused`: why there is no interval, null where there is one. Intervals are objects of `estimate`, `low`, `high`
and `n` (seeds), null where not given. A scale is one point, however many seeds it has.

``fit``
    One arm. `exponent` is b: for ``power`` the mean over the seeds' own fits (`seeds`) with its t interval, for
    ``odds`` the fit of the seeds' mean with the interval of a score test over seeds; for ``power_floor`` it has no
    interval, but `floor` has: E by the score test, with `identified` (E differs from 0 and has an upper bound) and
    `remark`. `mean_fit` is a `Curve` through the means over seeds, `scales` their tokens, `largest_deviation_percent`
    by how much it misses one at worst, `aicc` its Akaike criterion (null where points are too few), `leave_out` its
    signed error in percent where the largest scale (`scale`) is left out of the fit and predicted
    (`error_percent`), beside that of a straight line in log x (`baseline_percent`); `leave_out.refused` as above.
``difference``
    `exponent` of the objective minus NTP's, paired by seed, of ``power`` and ``odds``; `p` of no difference.
``joint``
    `exponent` of both arms together where they share one, ``power`` alone; `p` of the paired test that they do,
    `aicc_shared` and `aicc_separate` of either fit to the means.
``ratio``
    `ratio`: how many times its data NTP needs at the largest scale for the objective's value there,
    exp(log(y_ntp / y_objective) / b_ntp), with Fieller's interval over seeds; ``power`` alone. `extrapolated`: that
    many tokens lie outside the scales that were trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from eval.fits.forms import FORMULAS, Curve, Form, aicc, corrected, fit_curve, log_linear, needed
from eval.fits.robust import (
    accepted,
    critical_t,
    exponents,
    floor_t,
    huber_cost,
    odds_difference_t,
    odds_t,
    shared_exponents,
    shared_line,
)
from eval.results import HELDOUT, arms, averaged, check_metrics, compared, final, guessing, scores, select
from eval.statistics import NOTHING, Interval, mean_interval, paired_difference, relative_improvement
from prior.config import Statistics
from prior.errors import UserError
from prior.files import write_json

KEYS = ("kind", "arch", "objective", "quantity", "form")
# How far the worst of the seeds' mean points lies from their fit, in percent.
DEVIATION = "largest_deviation_percent"
ONE_SEED = "one seed gives no interval"
# Where exponents of odds are tested around their estimate: finely beside it.
OFFSETS = 4 * np.linspace(-1, 1, 161) ** 3


def fits(metrics: pd.DataFrame, settings: Statistics) -> list[dict[str, Any]]:
    """Fit every arm and quantity of `metrics`, without ablations; JSON-able records as described above."""
    checked = check_metrics(compared(metrics))
    guesses = chances(checked)
    records: list[dict[str, Any]] = []
    for quantity, table in quantities(checked).items():
        grids = {arm: by_scale(select(table, arch=arm[0], objective=arm[1])) for arm in arms(table)}
        for form in FORMULAS:
            if form == "odds" and quantity not in guesses:
                continue
            chance = guesses.get(quantity, 0.0)
            fitted = {arm: fit_arm(values, form, settings, chance) for arm, values in grids.items()}
            key = {"quantity": quantity, "form": form}
            for (arch, objective), record in fitted.items():
                records.append({"kind": "fit", "arch": arch, "objective": objective, **key, **record})
            for arch, objective in grids:
                if objective == "ntp" or (arch, "ntp") not in grids or form == "power_floor":
                    continue
                ours, base = (arch, objective), (arch, "ntp")
                why = next((fitted[arm]["refused"] for arm in (base, ours) if fitted[arm]["refused"]), None)
                compare = (difference, joint, ratio) if form == "power" else (difference,)
                for what in compare:
                    record = what(grids[ours], grids[base], form, settings, chance, why)
                    place = {"kind": what.__name__, "arch": arch, "objective": objective}
                    records.append({**place, **key, **record})
    return _jsonable(records)


def find(records: Iterable[dict[str, Any]], **where: str) -> dict[str, Any] | None:
    """The one record with these values of `KEYS`; None if there is none."""
    return next((record for record in records if all(record[key] == value for key, value in where.items())), None)


def interval(stored: dict[str, Any] | None) -> Interval:
    """An interval of a record, NaN where it has none."""
    if not stored:
        return NOTHING
    value, low, high = (
        float("nan") if stored[key] is None else float(stored[key]) for key in ("estimate", "low", "high")
    )
    return Interval(value, low, high, int(stored["n"]))


def quantities(metrics: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What is fitted: name -> table of arch, objective, scale_tokens, seed, value.

    ``loss``, ``loss_relevant``, ``loss_other`` in nats/token on held-out captions with their pictures;
    ``error:<benchmark>`` = 1 - accuracy; ``error`` is the mean over the benchmarks that enter the averages.
    """
    keep = ["arch", "objective", "scale_tokens", "seed", "value"]
    rows = select(final(metrics), picture="with")
    losses = select(rows, benchmark=HELDOUT)
    found = {name: select(losses, metric=name)[keep] for name in ("loss", "loss_relevant", "loss_other")}
    errors = _errors(metrics)
    found |= {f"error:{name}": select(errors, benchmark=name)[keep] for name in sorted(set(errors.benchmark))}
    if len(errors):
        found["error"] = _averaged(errors, metrics).groupby(keep[:-1], as_index=False).value.mean()
    return {name: table for name, table in found.items() if len(table)}


def write_fits(metrics: pd.DataFrame, settings: Statistics, path: str | Path) -> list[dict[str, Any]]:
    """Write ``fits.json`` and return its records."""
    records = fits(metrics, settings)
    write_json(path, records)
    return records


def fit_arm(values: pd.DataFrame, form: Form, settings: Statistics, chance: float = 0.0) -> dict[str, Any]:
    """The ``fit`` record of one arm, without its keys; `values` has a row per seed and a column per scale."""
    x, y = values.columns.to_numpy(float), values.to_numpy(float)
    record: dict[str, Any] = {"formula": FORMULAS[form], "scales": [int(scale) for scale in x]}
    record |= {"exponent": asdict(NOTHING), "mean_fit": None, DEVIATION: None, "aicc": None, "seeds": []}
    record |= {"floor": None, "leave_out": leave_out(x, y.mean(axis=0), form, chance), "refused": None}
    try:
        curve = fit_curve(x, y.mean(axis=0), form, chance)
        alone = zip(values.index, y, strict=True) if form == "power" else ()
        laws = {seed: fit_curve(x, row) for seed, row in alone}
    except UserError as error:
        return record | {"refused": str(error)}
    residuals = np.log(y.mean(axis=0) / curve(x))
    record |= {"mean_fit": asdict(curve), DEVIATION: float(100 * np.expm1(np.abs(residuals).max()))}
    record |= {"aicc": aicc(curve, len(x)), "seeds": [{"seed": int(seed), **asdict(law)} for seed, law in laws.items()]}
    failed = [f"seed{seed}" for seed, law in laws.items() if not law.converged]
    if failed or not curve.converged:
        which = ", ".join(failed) or "the mean over seeds"
        return record | {"refused": f"{FORMULAS[form]} does not fit: the fit of {which} ends at its bounds"}
    record["exponent"] = asdict(Interval(curve.b, float("nan"), float("nan"), len(y)))
    if form == "power":
        record["exponent"] = asdict(mean_interval([law.b for law in laws.values()], settings.confidence))
    if len(y) == 1:
        return record | {"refused": ONE_SEED}
    if form == "odds":
        grid, limit = curve.b + OFFSETS, critical_t(len(y), settings.confidence)
        low, high = accepted(lambda b: odds_t(x, y, chance, b), grid, limit, curve.b)
        record["exponent"] = asdict(Interval(curve.b, low, high, len(y)))
        if not np.isfinite([low, high]).all():
            record["refused"] = "no interval: the curve is too near to guessing or to perfection, or not of this form"
    if form == "power_floor":
        record["floor"] = floor_interval(x, y, curve.E, settings.confidence)
        record["refused"] = record["floor"]["refused"]
    return record


def floor_interval(x: np.ndarray, y: np.ndarray, estimate: float, confidence: float) -> dict[str, Any]:
    """E's interval by `floor_t` over seeds, of values (seeds, scales): those floors that the seeds do not rule out."""
    lowest = float(np.exp(np.log(y).mean(axis=0)).min())
    grid = np.unique(np.append(np.linspace(0, 0.999 * lowest, 240), min(estimate, 0.999 * lowest)))
    low, high = accepted(lambda floor: floor_t(x, y, floor), grid, critical_t(len(y), confidence))
    found = {
        "estimate": estimate,
        "low": max(low, 0.0),
        "high": high,
        "n": len(y),
        "identified": False,
        "refused": None,
    }
    if math.isnan(low):
        why = "no floor E fits: the curve falls ever faster, or has another shape"
        return found | {"low": low, "remark": why, "refused": why}
    if low > 0 and math.isfinite(high):
        return found | {"identified": True, "remark": ""}
    upper = "no upper bound below the smallest value" if math.isinf(high) else "the seeds allow none (0)"
    both = "anything up to the smallest value is possible" if low <= 0 and math.isinf(high) else upper
    return found | {"remark": f"E weakly identified: {both}"}


def difference(
    ours: pd.DataFrame, base: pd.DataFrame, form: Form, settings: Statistics, chance: float, why: str | None
) -> dict[str, Any]:
    """The ``difference`` record of two arms (rows: seeds, columns: scales); `why` it cannot be given, if it cannot."""
    if why and why != ONE_SEED:
        return {"exponent": asdict(NOTHING), "p": None, "refused": why}
    x = base.columns.to_numpy(float)
    if form == "power":
        gap = paired_difference(seed_exponents(ours), seed_exponents(base), settings.confidence)
        return {"exponent": asdict(gap), "p": _p(gap, settings.confidence), "refused": why}
    laws = [fit_curve(x, values.mean().to_numpy(float), form, chance) for values in (ours, base)]
    estimate = laws[0].b - laws[1].b
    if why:
        return {"exponent": asdict(Interval(estimate, math.nan, math.nan, 1)), "p": None, "refused": why}

    def statistic(gap: np.ndarray) -> np.ndarray:
        return odds_difference_t(x, ours.to_numpy(float), base.to_numpy(float), chance, gap)

    low, high = accepted(statistic, estimate + OFFSETS, critical_t(len(base), settings.confidence), estimate)
    p = float(2 * stats.t.sf(abs(statistic(np.zeros(1))[0]), len(base) - 1))
    open_ = None if np.isfinite([low, high]).all() else "no interval: the curves are too near to guessing or perfection"
    return {"exponent": asdict(Interval(estimate, low, high, len(base))), "p": p, "refused": open_}


def joint(
    ours: pd.DataFrame, base: pd.DataFrame, form: Form, settings: Statistics, chance: float, why: str | None
) -> dict[str, Any]:
    """The ``joint`` record of two arms: one exponent for both, and whether the seeds allow it."""
    if why and why != ONE_SEED:
        return {"exponent": asdict(NOTHING), "p": None, "aicc_shared": None, "aicc_separate": None, "refused": why}
    x = base.columns.to_numpy(float)
    shared = shared_exponents(x, ours.to_numpy(float), base.to_numpy(float))
    means = [values.mean().to_numpy(float) for values in (ours, base)]
    separate = sum(fit_curve(x, mean, form).objective for mean in means)
    design, values = shared_line(x, *means)
    together = float(huber_cost(design, values))
    p = None if why else difference(ours, base, form, settings, chance, None)["p"]
    criteria = {"aicc_shared": corrected(together, 2 * len(x), 3), "aicc_separate": corrected(separate, 2 * len(x), 4)}
    return {"exponent": asdict(mean_interval(shared, settings.confidence)), "p": p, **criteria, "refused": why}


def ratio(
    ours: pd.DataFrame, base: pd.DataFrame, form: Form, settings: Statistics, chance: float, why: str | None
) -> dict[str, Any]:
    """The ``ratio`` record of two arms: how many times its data NTP needs for the other's value."""
    nothing = {"ratio": asdict(NOTHING), "extrapolated": None}
    if why and why != ONE_SEED:
        return nothing | {"refused": why}
    found = log_ratio(ours.iloc[:, -1], base.iloc[:, -1], seed_exponents(base), settings.confidence)
    if found is None:
        return nothing | {"refused": "NTP's exponent is not above zero: no amount of data would make up for anything"}
    with np.errstate(over="ignore"):
        value, low, high = (float(np.exp(bound)) for bound in (found.estimate, found.low, found.high))
    span = base.columns[0] / base.columns[-1]
    outside = {"extrapolated": bool(value > 1 or value < span)}
    return {"ratio": asdict(Interval(value, low, high, found.n)), **outside, "refused": why}


def log_ratio(ours: pd.Series, base: pd.Series, exponent: pd.Series, confidence: float) -> Interval | None:
    """Log of the data that NTP needs, in multiples of what it had, with Fieller's interval; all indexed by seed.

    `ours` and `base` are the values at the largest scale, `exponent` NTP's; None where that is not surely positive.
    """
    quotient = relative_improvement(np.log(base / ours), exponent, confidence)
    if exponent.mean() <= 0 or (quotient.n > 1 and not math.isfinite(quotient.low)):
        return None
    return Interval(quotient.estimate + 1, quotient.low + 1, quotient.high + 1, quotient.n)


def leave_out(x: np.ndarray, y: np.ndarray, form: Form, chance: float = 0.0) -> dict[str, Any]:
    """How well the other scales predict the largest one, by a form and by a straight line in log x."""
    found: dict[str, Any] = {"scale": int(x[-1]), "error_percent": None, "baseline_percent": None, "refused": None}
    if len(x) - 1 < needed(form):
        left = f"{len(x) - 1} scales are left, {FORMULAS[form]} needs {needed(form)}"
        return found | {"refused": f"the largest scale cannot be left out: {left}"}
    try:
        curve = fit_curve(x[:-1], y[:-1], form, chance)
    except UserError as error:
        return found | {"refused": str(error)}
    predicted = {"error_percent": float(curve(x[-1:])[0]), "baseline_percent": log_linear(x[:-1], y[:-1], x[-1])}
    return found | {key: 100 * (value / float(y[-1]) - 1) for key, value in predicted.items()}


def law(record: dict[str, Any] | None) -> Curve | None:
    """The curve of a ``fit`` record through the means over seeds; None where there is none."""
    return Curve(**record["mean_fit"]) if record and record["mean_fit"] and record["mean_fit"]["converged"] else None


def seed_laws(record: dict[str, Any]) -> list[Curve]:
    """The curves of a ``fit`` record through each seed."""
    return [Curve(**{key: value for key, value in entry.items() if key != "seed"}) for entry in record["seeds"]]


def _errors(metrics: pd.DataFrame) -> pd.DataFrame:
    rows = select(final(metrics), picture="with")
    right = rows[(rows.benchmark != HELDOUT) & (rows.metric == "accuracy")]
    return right.assign(value=1 - right.value / 100)


def _averaged(errors: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Errors of the benchmarks that enter the averages (`eval.results.averaged`).

    One that was asked at some scales only would bend their mean: left out.
    """
    names = {score.benchmark for score in averaged(scores(metrics, pd.DataFrame()))}
    errors = errors[errors.benchmark.isin(names)]
    scales = errors.groupby("benchmark").scale_tokens.transform("nunique")
    return errors[scales == errors.scale_tokens.nunique()]


def chances(metrics: pd.DataFrame) -> dict[str, float]:
    """What guessing gives (0-1) for each error of `quantities`; NaN where it is not known."""
    errors = _errors(metrics)
    if errors.empty:
        return {}
    known = {name: guessing(metrics, name) / 100 for name in sorted(set(errors.benchmark))}
    mean = float(np.mean([known[name] for name in sorted(set(_averaged(errors, metrics).benchmark))]))
    return {f"error:{name}": value for name, value in known.items()} | {"error": mean}


def by_scale(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per seed, a column per scale, both ascending."""
    return rows.pivot(index="seed", columns="scale_tokens", values="value").sort_index().sort_index(axis=1)


def _p(found: Interval, confidence: float) -> float:
    """The p of the t test that an interval over seeds goes with: that its estimate is 0. NaN with one seed."""
    if found.n == 1:
        return float("nan")
    deviation = found.half_width / critical_t(found.n, confidence)
    return float(2 * stats.t.sf(abs(found.estimate) / max(deviation, 1e-300), found.n - 1))


def seed_exponents(values: pd.DataFrame) -> pd.Series:
    """b of A·x^−b by seed; `values` as `by_scale` gives them."""
    return pd.Series(exponents(values.columns.to_numpy(float), values.to_numpy(float)), index=values.index)


def _jsonable(value: Any) -> Any:
    """NaN and infinity are not JSON: they become null."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
