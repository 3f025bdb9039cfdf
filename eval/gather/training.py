"""The steps of all pre-trainings, run by run in a few bins: curves and how much they jitter, without the long logs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from eval.results import RUN
from prior.config import Preset, parse_run, parse_tokens
from prior.errors import UserError

LOSSES = ("loss", "loss_relevant", "loss_other")
BINS, LEAST = 40, 4
# A spike's neighbourhood in steps, and by how many of its standard deviations a spike exceeds its median.
WINDOW, THRESHOLD = 51, 5.0
# Of a normal distribution, over the median absolute deviation.
MAD = 1.4826

Floats = NDArray[np.float64]


def training(preset: Preset, runs: Path) -> pd.DataFrame:
    """The pre-training logs of a preset in the folder `runs`: see `binned`, with the columns of a run's key before."""
    frames = []
    for name in preset.runs():
        run = parse_run(name)
        key = [run.arch, run.objective, parse_tokens(run.scale), run.seed]
        table = binned(read_log(runs / name / "pretrain/log.jsonl"))
        for place, (column, value) in enumerate(zip(RUN, key, strict=True)):
            table.insert(place, column, value)
        frames.append(table)
    return pd.concat(frames, ignore_index=True)


def read_log(path: Path) -> pd.DataFrame:
    """The steps of a ``log.jsonl``; what was not measured is NaN.

    Raises
    ------
    UserError
        If it is missing, empty or not a log.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        log = pd.DataFrame(lines, columns=["step", *LOSSES, "grad_norm", "lr", "tokens", "seconds"]).astype(float)
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path}: not a training's log; train that run (again)") from None
    if log.empty:
        raise UserError(f"{path}: holds no step; train that run again")
    return log


def bin_mean(bins: pd.DataFrame, column: str) -> pd.DataFrame:
    """A row for each run, `RUN` and ``value``: the mean of its bins by their steps, NaN where it has none."""
    known = bins[column].notna()
    parts = bins.assign(total=(bins[column].astype(float) * bins.steps).where(known), steps=bins.steps.where(known))
    sums = parts.groupby(RUN, observed=True)[["total", "steps"]].sum(min_count=1).reset_index()
    return sums[RUN].assign(value=sums.total / sums.steps)


def spike_rate(bins: pd.DataFrame) -> pd.DataFrame:
    """A row for each run, `RUN` and ``value``: spikes in 1,000 judged steps, NaN where none was judged."""
    sums = bins.groupby(RUN, observed=True)[["spikes", "judged"]].sum().reset_index()
    return sums[RUN].assign(value=1000 * sums.spikes / sums.judged.where(sums.judged > 0))


def binned(log: pd.DataFrame) -> pd.DataFrame:
    """The steps of one run in at most `BINS` bins of equal size, of at least `LEAST` steps each.

    Returns
    -------
    DataFrame
        A row for each bin, with ``bin``, ``first_step``, ``last_step``, ``steps`` and

        ``tokens``, ``seconds``
            label tokens seen and time passed at its end; time that an interruption took is left out,
        ``step_seconds``
            median time of a step,
        ``loss``, ``loss_relevant``, ``loss_other``
            mean unweighted loss (nats per token) of the steps' batches,
        ``<loss>_variance``
            variance of the same about its local trend: mean square of `residuals`,
        ``grad_norm``, ``grad_norm_mean``, ``grad_norm_max``
            median, mean and largest norm of the gradient before it is clipped,
        ``grad_norm_variance``
            variance of its natural logarithm about the local trend, the same whatever the loss is multiplied by,
        ``judged``, ``spikes``
            steps that `spikes` were looked for in, and how many it found.

        The last step's batch is what was left of the data: it has part in curves alone, not in what is about jitter.
    """
    count = min(BINS, max(1, len(log) // LEAST))
    owner = np.repeat(np.arange(count), [len(part) for part in np.array_split(np.arange(len(log)), count)])
    passed = log.seconds.diff().fillna(log.seconds)
    # The clock starts anew where a run goes on after an interruption.
    passed = passed.where(passed >= 0, log.seconds)
    # The first step and those that were measured after take longer than a step, which the median does not mind.
    table = pd.DataFrame({"tokens": log.tokens, "seconds": passed.cumsum()}).groupby(owner).last()
    table.insert(0, "bin", np.arange(count))
    table.insert(1, "first_step", log.step.groupby(owner).first().astype(int))
    table.insert(2, "last_step", log.step.groupby(owner).last().astype(int))
    table.insert(3, "steps", np.bincount(owner))
    table["step_seconds"] = passed.groupby(owner).median()
    for name in LOSSES:
        table[name] = log[name].groupby(owner).mean()
        table[f"{name}_variance"] = _square(log[name].to_numpy()[:-1], owner)
    norm = log.grad_norm.to_numpy()
    table["grad_norm"] = log.grad_norm.groupby(owner).median()
    table["grad_norm_mean"] = log.grad_norm.groupby(owner).mean()
    table["grad_norm_max"] = log.grad_norm[:-1].groupby(owner[:-1]).max()
    with np.errstate(divide="ignore"):
        table["grad_norm_variance"] = _square(np.log(norm[:-1]), owner)
    warm = log.lr.argmax() if log.lr.notna().any() else 0
    judged = np.arange(len(log)) > warm
    judged[-1] = False
    found = np.zeros(len(log), dtype=bool)
    found[:-1] = spikes(norm[:-1]) & judged[:-1]
    table["judged"] = pd.Series(judged).groupby(owner).sum().astype(int)
    table["spikes"] = pd.Series(found).groupby(owner).sum().astype(int)
    numbers = table.select_dtypes("float").columns.difference(["tokens"])
    return table.astype(dict.fromkeys(numbers, "float32") | {"tokens": "int64"})


def residuals(values: Floats) -> Floats:
    """What each value is off the line between its neighbours, scaled to the variance of the noise; NaN at both ends.

    (y_i − (y_{i−1} + y_{i+1}) / 2) / √1.5: of independent noise about a line the mean square is the noise's variance,
    whatever the line (Gasser, Sroka and Jennen-Steinmetz, Biometrika 73, 1986).
    """
    off = np.full(len(values), np.nan)
    off[1:-1] = (values[1:-1] - (values[:-2] + values[2:]) / 2) / np.sqrt(1.5)
    return off


def spikes(norms: Floats, window: int = WINDOW, threshold: float = THRESHOLD) -> NDArray[np.bool_]:
    """Where a gradient norm exceeds median + `threshold` · 1.4826 · MAD of the `window` steps around it.

    The one-sided Hampel identifier (Davies and Gather, JASA 88, 1993). Median and MAD grow with the loss's scale as the
    norm does, so a weighted loss has no more spikes for being larger. At the ends the window is the first or last one;
    a shorter run is one window. Equal norms hold no spike, and one that is not a number is one.
    """
    window = min(window, len(norms))
    if not window:
        return np.zeros(0, dtype=bool)
    finite = np.where(np.isfinite(norms), norms, np.inf)
    views = np.lib.stride_tricks.sliding_window_view(finite, window)
    at = np.clip(np.arange(len(norms)) - window // 2, 0, len(norms) - window)
    middle = np.median(views, axis=1)
    with np.errstate(invalid="ignore"):
        spread = MAD * np.median(np.abs(views - middle[:, None]), axis=1)
    return np.asarray((finite > middle[at] + threshold * spread[at]) | np.isinf(finite))


def _square(values: Floats, owner: NDArray[np.int64]) -> pd.Series:
    """The mean square of the residuals in each bin; NaN in one without any."""
    squares = pd.Series(residuals(values) ** 2).groupby(owner[: len(values)]).mean()
    return squares.reindex(range(owner[-1] + 1))
