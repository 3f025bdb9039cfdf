"""Fits of many studies at once, and tests over seeds of what one parameter of a curve may be.

Arrays have the shape (..., seeds, points); everything before is many studies, or many values to be tested. Where a
parameter is poorly identified, the fits of single seeds are biased and an interval of their mean does not hold. The
score test does not need them: all seeds share one curve, on which the parameter in question is held at a value and the
others are fitted; were the value right, the seeds' scores (derivatives of their Huber objectives by the parameter,
less what the fit of the others takes up) would scatter about zero, which a t test over the seeds asks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import special, stats

from eval.fits.forms import HUBER_DELTA, SQUARES

# Of free parameters (..., p): log prediction (..., points), its derivatives by them (..., points, p).
Model = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
# Of the same, its derivative (..., points) by the parameter in question.
Slope = Callable[[np.ndarray], np.ndarray]


def huber_lines(design: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Coefficients (..., p) of the linear Huber regressions of `values` (..., points) on `design` (points, p)."""
    start = values @ np.linalg.pinv(design).T
    return settle(
        lambda theta: (theta @ design.T, np.broadcast_to(design, (*theta.shape[:-1], *design.shape))),
        start,
        values[..., None, :],
    )


def exponents(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """b of the plain power law, by seed: (..., seeds) of positive `values` (..., seeds, points) at `x` (points,)."""
    return huber_lines(_line(x), np.log(values))[..., 1]


def shared_exponents(x: np.ndarray, ours: np.ndarray, base: np.ndarray) -> np.ndarray:
    """b of a power law with levels of their own but one exponent for two arms, by seed; shapes as in `exponents`."""
    return huber_lines(*shared_line(x, ours, base))[..., 2]


def shared_line(x: np.ndarray, ours: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Design (2·points, 3) and values (..., 2·points) of that fit."""
    one, zero = np.ones((len(x), 1)), np.zeros((len(x), 1))
    slope = _line(x)[:, 1:]
    design = np.vstack([np.hstack([one, zero, slope]), np.hstack([zero, one, slope])])
    return design, np.log(np.concatenate([ours, base], axis=-1))


def huber_cost(design: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The least Huber objective of `huber_lines`, shape (...)."""
    return _huber(values - huber_lines(design, values) @ design.T).sum(axis=-1)


def floor_t(x: np.ndarray, values: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """t statistic (seeds - 1 degrees of freedom) of E = `floor` (...) in ``E + A·x^-b``; values as in `exponents`."""
    log_y, z = np.log(values), _centred(x)
    with np.errstate(divide="ignore"):
        log_floor = np.log(np.asarray(floor, dtype=float))[..., None]

    def model(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        line = theta[..., :1] - theta[..., 1:] * z
        predicted = np.logaddexp(line, log_floor)
        share = np.exp(line - predicted)
        return predicted, np.stack([share, -share * z], axis=-1)

    centre = np.exp(log_y.mean(axis=-2))
    above = np.log(np.maximum(centre - np.exp(log_floor), 1e-3 * centre))
    return _score(model, lambda theta: np.exp(-model(theta)[0]), above @ np.linalg.pinv(_line(x)).T, log_y)


def odds_t(x: np.ndarray, values: np.ndarray, chance: float, b: np.ndarray) -> np.ndarray:
    """t statistic of an exponent `b` (...) of the odds; values (..., seeds, points) are errors."""
    log_y, line = np.log(values), np.asarray(b, dtype=float)[..., None] * _centred(x)

    def model(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        predicted, right = _guessing(theta + line, chance)
        return predicted, -right[..., None]

    def slope(theta: np.ndarray) -> np.ndarray:
        return -_guessing(theta + line, chance)[1] * _centred(x)

    return _score(model, slope, _level(log_y, chance, line), log_y)


def odds_difference_t(
    x: np.ndarray, ours: np.ndarray, base: np.ndarray, chance: float, difference: np.ndarray
) -> np.ndarray:
    """t statistic, paired by seed, of a `difference` (...) of the odds' exponents: that of `ours` minus `base`'s."""
    log_y, z = np.log(np.concatenate([ours, base], axis=-1)), _centred(x)
    points, given = len(z), np.asarray(difference, dtype=float)[..., None] * z

    def logits(theta: np.ndarray) -> np.ndarray:
        line = theta[..., 2:] * z
        return np.concatenate([theta[..., :1] + line + given, theta[..., 1:2] + line], axis=-1)

    def model(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        predicted, right = _guessing(logits(theta), chance)
        first = np.arange(2 * points) < points
        return predicted, np.stack([-right * first, -right * ~first, -right * np.tile(z, 2)], axis=-1)

    def slope(theta: np.ndarray) -> np.ndarray:
        return -_guessing(logits(theta), chance)[1] * np.concatenate([z, np.zeros(points)])

    below = _logits(log_y[..., points:], chance) @ np.linalg.pinv(np.stack([np.ones(points), z], axis=1)).T
    above = _level(log_y[..., :points], chance, below[..., 1:] * z + given)
    below = np.broadcast_to(below, (*above.shape[:-1], 2))
    return _score(model, slope, np.concatenate([above, below], axis=-1), log_y)


def accepted(
    statistic: Callable[[np.ndarray], np.ndarray], grid: np.ndarray, critical: float, around: float | None = None
) -> tuple[float, float]:
    """The range of values of an ascending `grid` at which |statistic| stays below `critical`, its ends sharpened.

    With `around`, the range that holds this value: far off, where a curve is flat, nothing can be told from anything.
    An end is infinite where the grid ends first, both are NaN where nothing is accepted.
    """
    inside = np.flatnonzero(np.abs(statistic(grid)) <= critical)
    if around is not None and len(inside):
        runs = np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1)
        inside = min(runs, key=lambda run: np.abs(grid[run] - around).min())
    if not len(inside):
        return float("nan"), float("nan")
    ends = []
    for last, out in ((inside[0], inside[0] - 1), (inside[-1], inside[-1] + 1)):
        if not 0 <= out < len(grid):
            ends.append(-np.inf if out < 0 else np.inf)
            continue
        kept, left = grid[last], grid[out]
        for _ in range(4):
            steps = np.linspace(kept, left, 18)
            first = int(np.argmax(np.append(np.abs(statistic(steps[1:-1])) > critical, True)))
            kept, left = steps[first], steps[first + 1]
        ends.append(float(kept))
    return ends[0], ends[1]


def critical_t(seeds: int, confidence: float) -> float:
    return float(stats.t.ppf((1 + confidence) / 2, seeds - 1))


def settle(model: Model, start: np.ndarray, log_y: np.ndarray, rounds: int = 300) -> np.ndarray:
    """The parameters (..., p) that minimise the Huber objective over all seeds and points of `log_y`.

    Reweighted least squares, which are safe, and Newton's method, which ends, take turns; steps that would not descend
    are halved.
    """
    theta = start

    def cost(theta: np.ndarray) -> np.ndarray:
        return _huber(log_y - model(theta)[0][..., None, :]).sum(axis=(-1, -2))

    now = cost(theta)
    for turn in range(rounds):
        predicted, slopes = model(theta)
        residual = log_y - predicted[..., None, :]
        pull = np.einsum("...k,...kp->...p", _pull(residual).sum(axis=-2), slopes)
        distance = np.maximum(np.abs(residual), 1e-300)
        weight = (distance < HUBER_DELTA) if turn % 2 else np.minimum(1, HUBER_DELTA / distance)
        weight = (1 - SQUARES) * weight + SQUARES
        step = _solve(np.einsum("...k,...kp,...kq->...pq", weight.sum(axis=-2), slopes, slopes), pull)
        step = np.clip(step, -1, 1)
        for _ in range(12):
            tried = theta + step
            then = cost(tried)
            worse = then > now * (1 + 1e-14) + 1e-300
            if not worse.any():
                break
            step = np.where(worse[..., None], step / 2, step)
        theta, now = np.where(worse[..., None], theta, tried), np.where(worse, now, then)
        if turn % 2 and np.abs(step).max() < 1e-10:
            break
    return theta


def _score(model: Model, slope: Slope, start: np.ndarray, log_y: np.ndarray) -> np.ndarray:
    theta = settle(model, start, log_y)
    predicted, slopes = model(theta)
    residual = log_y - predicted[..., None, :]
    # Where a residual is cut, its score no longer follows the curve. How often that is, few seeds tell better by their
    # spread than by being counted.
    spread = np.sqrt((residual**2).mean(axis=-2))
    follows = (1 - SQUARES) * special.erf(HUBER_DELTA / np.sqrt(2) / np.maximum(spread, 1e-12)) + SQUARES
    direction = slope(theta)
    taken = _solve(
        np.einsum("...k,...kp,...kq->...pq", follows, slopes, slopes),
        np.einsum("...k,...kp,...k->...p", follows, slopes, direction),
    )
    own = direction - np.einsum("...kp,...p->...k", slopes, taken)
    scores = np.einsum("...sk,...k->...s", _pull(residual), own)
    deviation = scores.std(axis=-1, ddof=1) / np.sqrt(scores.shape[-1])
    return scores.mean(axis=-1) / np.maximum(deviation, 1e-300)


def _huber(residual: np.ndarray) -> np.ndarray:
    distance = np.abs(residual)
    huber = np.where(distance < HUBER_DELTA, distance**2 / 2, HUBER_DELTA * (distance - HUBER_DELTA / 2))
    return (1 - SQUARES) * huber + SQUARES * distance**2 / 2


def _pull(residual: np.ndarray) -> np.ndarray:
    """The derivative of `_huber`."""
    return (1 - SQUARES) * np.clip(residual, -HUBER_DELTA, HUBER_DELTA) + SQUARES * residual


def _solve(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    size = np.trace(matrix, axis1=-2, axis2=-1)[..., None, None]
    ridge = (1e-12 * size + 1e-200) * np.eye(matrix.shape[-1])
    return np.linalg.solve(matrix + ridge, vector[..., None])[..., 0]


def _centred(x: np.ndarray) -> np.ndarray:
    log_x = np.log(np.asarray(x, dtype=float))
    return log_x - log_x.mean()


def _line(x: np.ndarray) -> np.ndarray:
    """The design of log y = a - b·z, shape (points, 2)."""
    z = _centred(x)
    return np.stack([np.ones_like(z), -z], axis=1)


def _guessing(logit: np.ndarray, chance: float) -> tuple[np.ndarray, np.ndarray]:
    """Log error at these log odds, and minus its derivative."""
    return np.log1p(-chance) - np.logaddexp(0, logit), 1 / (1 + np.exp(-logit))


def _logits(log_y: np.ndarray, chance: float) -> np.ndarray:
    """Log odds of the seeds' mean, none below those of 1 %: where to start from."""
    return np.log(np.maximum((1 - chance) * np.exp(-log_y.mean(axis=-2)) - 1, 1e-2))


def _level(log_y: np.ndarray, chance: float, line: np.ndarray) -> np.ndarray:
    return (_logits(log_y, chance) - line).mean(axis=-1, keepdims=True)
