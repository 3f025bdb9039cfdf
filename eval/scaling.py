"""Power laws of held-out loss and benchmark error against caption tokens."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from eval.results import HELDOUT, arms, check_metrics, final, select
from eval.statistics import Interval, mean_interval, paired_difference
from prior.config import Statistics
from prior.errors import UserError
from prior.files import write_json

Form = Literal["power", "power_floor"]
FORMULAS: dict[Form, str] = {"power": "A·x^-b", "power_floor": "E + A·x^-b"}
# Log residuals up to 5 % count as squares, larger ones linearly: well above the noise of a converged seed, and small
# enough that one failed run cannot turn the line.
HUBER_DELTA = 0.05
STEEPEST = 3.0
# How far the worst of the seeds' mean points lies from their fit, in percent.
DEVIATION = "largest_deviation_percent"


@dataclass(frozen=True)
class PowerLaw:
    """``E + A·x^-b`` (E = 0 for the plain form) with the Huber objective that it reached."""

    A: float
    b: float
    E: float
    objective: float
    converged: bool

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.E + self.A * np.asarray(x, dtype=float) ** -self.b


def fit_power_law(x: np.ndarray, y: np.ndarray, form: Form = "power", min_scales: int = 3) -> PowerLaw:
    """Fit ``A·x^-b`` or ``E + A·x^-b`` by least squares in log space with a Huber loss.

    Minimises Σ huber(log prediction - log y) from many starts: a grid over b (and E) picks the most promising ones,
    which are then polished within bounds. The form of the objective follows Hoffmann et al. (2022, appendix D.2).

    Parameters
    ----------
    x, y
        Positive values, shape (points,): caption tokens, and loss (nats/token) or error (0-1).
    form
        ``power`` needs `min_scales` distinct x (3 or more), ``power_floor`` five: two more than it has parameters.

    Raises
    ------
    UserError
        If there are too few distinct x, or a value that has no logarithm.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    distinct, needed = len(np.unique(x)), max(min_scales, 3 if form == "power" else 5)
    if distinct < needed:
        raise UserError(f"scales: {FORMULAS[form]} needs at least {needed} data scales, {distinct} given; add scales")
    if not (np.isfinite(y).all() and (y > 0).all() and (x > 0).all()):
        raise UserError("fit: a loss or error is zero or not a number, so it has no logarithm; leave this quantity out")
    centre = np.log(x).mean()
    log_x, log_y = np.log(x) - centre, np.log(y)

    def predict(theta: np.ndarray) -> np.ndarray:
        line = theta[0] - theta[1] * log_x
        return np.logaddexp(line, theta[2]) if form == "power_floor" else line

    def jacobian(theta: np.ndarray) -> np.ndarray:
        share = np.exp(theta[0] - theta[1] * log_x - predict(theta))
        columns = [share, -share * log_x]
        return np.stack([*columns, 1 - share] if form == "power_floor" else columns, axis=1)

    smallest = log_y.min()
    # A floor below a thousandth of the smallest value is none.
    # Loss may grow with scale, so a plain exponent may be negative; a floor only makes sense under a falling curve.
    bounds = (np.array([smallest - 12, -STEEPEST]), np.array([log_y.max() + 12, STEEPEST]))
    if form == "power_floor":
        bounds = (np.array([smallest - 12, 0.0, smallest - 7]), np.array([log_y.max() + 12, STEEPEST, smallest]))
    results = [
        least_squares(
            lambda theta: predict(theta) - log_y,
            start,
            jac=jacobian,
            bounds=bounds,
            loss="huber",
            f_scale=HUBER_DELTA,
            xtol=1e-12,
            ftol=1e-14,
            gtol=1e-12,
            max_nfev=400,
        )
        for start in _starts(log_x, log_y, form)
    ]
    best = min(results, key=lambda result: result.cost)
    a, b = best.x[:2]
    inside = bounds[0][1] + 1e-6 < b < bounds[1][1] - 1e-6
    floor = math.exp(best.x[2]) if form == "power_floor" else 0.0
    return PowerLaw(math.exp(a + b * centre), float(b), floor, float(best.cost), bool(best.success and inside))


def fits(metrics: pd.DataFrame, settings: Statistics) -> list[dict[str, Any]]:
    """Fit every arm and quantity of `metrics`; JSON-able records.

    A ``fit`` record holds arch, objective, quantity, form, the fit of each seed, the fit of the seeds' mean
    (``mean_fit``) with its largest deviation from a point (`DEVIATION`: the exponential of the largest absolute log
    residual, less one, in percent), and the exponent's t interval over seeds; a ``difference`` record the interval of
    an objective's exponent minus NTP's, paired by seed. ``refused`` says why a fit or an interval is not given, else it
    is null.
    """
    records: list[dict[str, Any]] = []
    for quantity, table in quantities(check_metrics(metrics)).items():
        for form in FORMULAS:
            exponents: dict[tuple[str, str], pd.Series] = {}
            for arch, objective in arms(table):
                rows = select(table, arch=arch, objective=objective)
                key = {"arch": arch, "objective": objective, "quantity": quantity, "form": form}
                record, exponents[arch, objective] = _fit_arm(rows, form, settings)
                records.append({"kind": "fit", **key, **record})
            for arch, objective in exponents:
                if objective != "ntp" and (arch, "ntp") in exponents:
                    key = {"arch": arch, "objective": objective, "quantity": quantity, "form": form}
                    ours, base = exponents[arch, objective], exponents[arch, "ntp"]
                    usable = len(ours) > 0 and len(base) > 0
                    gap = paired_difference(ours, base, settings.confidence) if usable else _nothing()
                    refused = None if usable else "one of the two exponents is not given"
                    if usable and gap.n == 1:
                        refused = "one seed gives no interval"
                    records.append({"kind": "difference", **key, "exponent": asdict(gap), "refused": refused})
    return _jsonable(records)


def quantities(metrics: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What is fitted: name -> table of arch, objective, scale_tokens, seed, value.

    ``loss``, ``loss_relevant``, ``loss_other`` in nats/token on held-out captions with their pictures;
    ``error:<benchmark>`` = 1 - accuracy; ``error`` is the mean over the benchmarks.
    """
    keep = ["arch", "objective", "scale_tokens", "seed", "value"]
    rows = select(final(metrics), picture="with")
    losses = select(rows, benchmark=HELDOUT)
    found = {name: select(losses, metric=name)[keep] for name in ("loss", "loss_relevant", "loss_other")}
    right = rows[(rows.benchmark != HELDOUT) & (rows.metric == "accuracy")]
    errors = right.assign(value=1 - right.value / 100)
    found |= {f"error:{name}": select(errors, benchmark=name)[keep] for name in sorted(set(errors.benchmark))}
    if len(errors):
        # A benchmark that was asked at some scales only would bend the mean over benchmarks.
        everywhere = errors.groupby("benchmark").scale_tokens.transform("nunique") == errors.scale_tokens.nunique()
        found["error"] = errors[everywhere].groupby(keep[:-1], as_index=False).value.mean()
    return {name: table for name, table in found.items() if len(table)}


def write_fits(metrics: pd.DataFrame, settings: Statistics, path: str | Path) -> list[dict[str, Any]]:
    """Write ``fits.json`` and return its records."""
    records = fits(metrics, settings)
    write_json(path, records)
    return records


def _fit_arm(rows: pd.DataFrame, form: Form, settings: Statistics) -> tuple[dict[str, Any], pd.Series]:
    """The record of one arm, and its exponents by seed (empty where no interval may be given)."""
    empty = pd.Series(dtype=float)
    scales = sorted(int(scale) for scale in set(rows.scale_tokens))
    record: dict[str, Any] = {"formula": FORMULAS[form], "scales": scales, "exponent": asdict(_nothing())}
    record |= {"mean_fit": None, DEVIATION: None, "seeds": [], "refused": None}
    try:
        mean = rows.groupby("scale_tokens").value.mean()
        law = fit_power_law(mean.index.to_numpy(), mean.to_numpy(), form, settings.min_scales)
        residuals = np.log(mean.to_numpy() / law(mean.index.to_numpy()))
        record |= {"mean_fit": asdict(law), DEVIATION: float(100 * np.expm1(np.abs(residuals).max()))}
        laws = {
            int(seed): fit_power_law(part.scale_tokens.to_numpy(), part.value.to_numpy(), form, settings.min_scales)
            for seed, part in rows.sort_values("scale_tokens").groupby("seed")
        }
    except UserError as error:
        return record | {"mean_fit": None, DEVIATION: None, "refused": str(error)}, empty
    record["seeds"] = [{"seed": seed, **asdict(law)} for seed, law in laws.items()]
    failed = [f"seed{seed}" for seed, law in laws.items() if not law.converged]
    if failed:
        return record | {"refused": f"no exponent: the fit of {', '.join(failed)} did not converge"}, empty
    exponents = pd.Series({seed: law.b for seed, law in laws.items()})
    record["exponent"] = asdict(mean_interval(exponents, settings.confidence))
    if len(exponents) == 1:
        record["refused"] = "one seed gives no interval"
    return record, exponents


def _starts(log_x: np.ndarray, log_y: np.ndarray, form: Form, keep: int = 3) -> list[np.ndarray]:
    """The `keep` best starting points of a grid over b (and E), each with the A that suits it."""
    slopes = np.concatenate([[0.01, 0.03], np.linspace(0.06, 1.5, 25), [2.0, 2.6]])
    if form == "power":
        slopes, floors = np.concatenate([-slopes, slopes]), np.array([-np.inf])
    else:
        floors = log_y.min() + np.log(np.concatenate([[2e-3, 0.05], np.linspace(0.1, 0.98, 23), [0.995]]))
    b, e = (grid.reshape(-1, 1) for grid in np.meshgrid(slopes, floors, indexing="ij"))
    above = np.log(np.maximum(np.exp(log_y) - np.exp(e), 1e-9))
    a = np.median(above + b * log_x, axis=1, keepdims=True)
    residual = np.abs(np.logaddexp(a - b * log_x, e) - log_y)
    cost = np.where(residual < HUBER_DELTA, residual**2 / 2, HUBER_DELTA * (residual - HUBER_DELTA / 2)).sum(axis=1)
    chosen = np.argsort(cost, kind="stable")[:keep]
    grid = np.hstack([np.clip(a, log_y.min() - 11, log_y.max() + 11), b, e])[chosen]
    return list(grid[:, :2] if form == "power" else grid)


def _nothing() -> Interval:
    return Interval(float("nan"), float("nan"), float("nan"), 0)


def _jsonable(value: Any) -> Any:
    """NaN is not JSON: it becomes null."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
