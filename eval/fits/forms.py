"""The forms of scaling curves, and their fit to points: least squares in log space with a Huber loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import least_squares

from prior.errors import UserError

Form = Literal["power", "power_floor", "odds"]
FORMULAS: dict[Form, str] = {"power": "A·x^−b", "power_floor": "E + A·x^−b", "odds": "(1 − chance)/(1 + A·x^b)"}
PARAMETERS: dict[Form, int] = {"power": 2, "power_floor": 3, "odds": 2}
# Log residuals up to 5 % count as squares, larger ones linearly: well above the noise of a converged seed's loss, and
# small enough that one failed run cannot turn the line. Errors near zero scatter more: there fits come close to least
# absolute deviations.
HUBER_DELTA = 0.05
# Where most residuals are large and scales lie at equal distances, a whole range of b is equally good under Huber's
# loss: this share of the plain squares picks one of them.
SQUARES = 0.01
STEEPEST = 3.0
# Odds beyond these, at the middle of the scales, are those of guessing or of perfection.
FARTHEST = 9.0


@dataclass(frozen=True)
class Curve:
    """A fitted curve with the Huber objective that it reached.

    ``power``: ``A·x^-b``. ``power_floor``: ``E + A·x^-b``. ``odds``: the error ``(1 - chance) / (1 + A·x^b)``, by which
    the odds ``(accuracy - chance) / (1 - accuracy) = A·x^b = (x / x0)^b`` are a power law, and accuracy stays between
    guessing and 1. Larger b falls faster in each of them.
    """

    form: Form
    A: float
    b: float
    E: float
    chance: float
    objective: float
    converged: bool

    def __call__(self, x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, dtype=float)
        if self.form == "odds":
            return (1 - self.chance) / (1 + self.A * x**self.b)
        return self.E + self.A * x**-self.b


def needed(form: Form) -> int:
    """How many distinct scales a form needs: two more than it has parameters."""
    return PARAMETERS[form] + 2


def fit_curve(x: np.ndarray, y: np.ndarray, form: Form = "power", chance: float = 0.0) -> Curve:
    """Fit a form by least squares in log space with a Huber loss.

    Minimises Σ huber(log prediction - log y), of which `SQUARES` are plain squares, from many starts: a grid over b
    (and E) picks the most promising ones, which are then polished within bounds. The form of the objective follows
    Hoffmann et al. (2022, appendix D.2).

    Parameters
    ----------
    x, y
        Positive values, shape (points,): caption tokens, and loss (nats/token) or error (0-1).
    form
        Needs `needed` distinct x.
    chance
        The accuracy of guessing (0-1), for ``odds``.

    Raises
    ------
    UserError
        If there are too few distinct x, a value that has no logarithm, or no known chance where one is needed.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if (distinct := len(np.unique(x))) < needed(form):
        raise UserError(f"{FORMULAS[form]} needs at least {needed(form)} data scales, {distinct} given; add scales")
    if not (np.isfinite(y).all() and (y > 0).all() and (x > 0).all()):
        raise UserError("fit: a loss or error is zero or not a number, so it has no logarithm; leave this quantity out")
    if form == "odds" and not 0 <= chance < 1:
        raise UserError("fit: it is not known what guessing gives, so there are no odds; score the metric `chance`")
    centre = np.log(x).mean()
    log_x, log_y = np.log(x) - centre, np.log(y)
    predict, jacobian, low, high = _problem(log_x, log_y, form, chance)
    results = [
        least_squares(
            lambda theta: predict(theta) - log_y,
            start,
            jac=jacobian,
            bounds=(low, high),
            loss=_loss,
            f_scale=HUBER_DELTA,
            xtol=1e-12,
            ftol=1e-14,
            gtol=1e-12,
            max_nfev=400,
        )
        for start in _starts(log_x, log_y, form, chance)
    ]
    best = min(results, key=lambda result: result.cost)
    a, b = (float(value) for value in best.x[:2])
    # At a bound of b or of the odds there is no minimum; a floor at its lower bound is none, and that is an answer.
    inside = all(low[i] + 1e-6 < best.x[i] < high[i] - 1e-6 for i in range(2))
    floor = math.exp(best.x[2]) if form == "power_floor" else 0.0
    level = math.exp(a - b * centre if form == "odds" else a + b * centre)
    guess = chance if form == "odds" else 0.0
    return Curve(form, level, b, floor, guess, float(best.cost), bool(best.success and inside))


def aicc(curve: Curve, points: int) -> float:
    """Akaike's criterion with its correction for small samples (Hurvich and Tsai, 1989); see `corrected`."""
    return corrected(curve.objective, points, PARAMETERS[curve.form])


def corrected(objective: float, points: int, parameters: int) -> float:
    """AICc of a fit's Huber objective, in which half the squares stand; NaN where the points are too few for it.

    The variance counts as one more parameter.
    """
    k = parameters + 1
    if points - k - 1 < 1:
        return float("nan")
    return points * math.log(max(2 * objective / points, 1e-30)) + 2 * k + 2 * k * (k + 1) / (points - k - 1)


def log_linear(x: np.ndarray, y: np.ndarray, at: float) -> float:
    """The baseline of predictions: a straight line of `y` in log x by least squares, read at `at`."""
    slope, intercept = np.polyfit(np.log(x), y, 1)
    return float(intercept + slope * math.log(at))


def _loss(z: np.ndarray) -> np.ndarray:
    """Huber's loss and a share of squares, of squared residuals in units of its threshold, with two derivatives."""
    root = np.sqrt(np.maximum(z, 1.0))
    huber = np.stack([np.where(z <= 1, z, 2 * root - 1), 1 / root, np.where(z <= 1, 0.0, -0.5 / root**3)])
    return (1 - SQUARES) * huber + SQUARES * np.stack([z, np.ones_like(z), np.zeros_like(z)])


def _problem(log_x: np.ndarray, log_y: np.ndarray, form: Form, chance: float):  # type: ignore[no-untyped-def]
    """Prediction and Jacobian in log space, and bounds, of the parameters (level at the centre, b[, log E])."""

    def line(theta: np.ndarray) -> np.ndarray:
        return theta[0] - theta[1] * log_x

    def floored(theta: np.ndarray) -> np.ndarray:
        return np.logaddexp(line(theta), theta[2])

    def guessing(theta: np.ndarray) -> np.ndarray:
        return math.log1p(-chance) - np.logaddexp(0, theta[0] + theta[1] * log_x)

    def line_slopes(theta: np.ndarray) -> np.ndarray:
        return np.stack([np.ones_like(log_x), -log_x], axis=1)

    def floored_slopes(theta: np.ndarray) -> np.ndarray:
        share = np.exp(line(theta) - floored(theta))
        return np.stack([share, -share * log_x, 1 - share], axis=1)

    def guessing_slopes(theta: np.ndarray) -> np.ndarray:
        right = 1 / (1 + np.exp(-theta[0] - theta[1] * log_x))
        return np.stack([-right, -right * log_x], axis=1)

    smallest, largest = log_y.min(), log_y.max()
    # Loss may grow with scale, so a plain exponent may be negative; a floor only makes sense under a falling curve. A
    # floor below a thousandth of the smallest value is none.
    if form == "power_floor":
        low, high = [smallest - 12, 0.0, smallest - 7], [largest + 12, STEEPEST, smallest]
        return floored, floored_slopes, np.array(low), np.array(high)
    if form == "odds":
        return guessing, guessing_slopes, np.array([-FARTHEST, -STEEPEST]), np.array([FARTHEST, STEEPEST])
    return line, line_slopes, np.array([smallest - 12, -STEEPEST]), np.array([largest + 12, STEEPEST])


def _starts(log_x: np.ndarray, log_y: np.ndarray, form: Form, chance: float, keep: int = 3) -> list[np.ndarray]:
    """The `keep` best starting points of a grid over b (and E), each with the level that suits it."""
    slopes = np.concatenate([[0.01, 0.03], np.linspace(0.06, 1.5, 25), [2.0, 2.6]])
    floors = np.array([-np.inf])
    if form == "power_floor":
        floors = log_y.min() + np.log(np.concatenate([[2e-3, 0.05], np.linspace(0.1, 0.98, 23), [0.995]]))
    else:
        slopes = np.concatenate([-slopes, slopes])
    b, e = (grid.reshape(-1, 1) for grid in np.meshgrid(slopes, floors, indexing="ij"))
    if form == "odds":
        odds = np.log(np.maximum((1 - chance) / np.exp(log_y) - 1, 1e-2))
        level = np.clip(np.median(odds - b * log_x, axis=1, keepdims=True), -FARTHEST + 1, FARTHEST - 1)
        predicted = math.log1p(-chance) - np.logaddexp(0, level + b * log_x)
    else:
        above = np.log(np.maximum(np.exp(log_y) - np.exp(e), 1e-9))
        level = np.median(above + b * log_x, axis=1, keepdims=True)
        level = np.clip(level, log_y.min() - 11, log_y.max() + 11)
        predicted = np.logaddexp(level - b * log_x, e)
    residual = np.abs(predicted - log_y)
    cost = np.where(residual < HUBER_DELTA, residual**2 / 2, HUBER_DELTA * (residual - HUBER_DELTA / 2)).sum(axis=1)
    chosen = np.argsort(cost, kind="stable")[:keep]
    grid = np.hstack([level, b, e])[chosen]
    return list(grid if form == "power_floor" else grid[:, :2])
