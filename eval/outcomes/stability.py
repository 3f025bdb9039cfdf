"""Stability of pre-training in unweighted NLL: jitter of loss and gradient from step to step and of checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eval import style
from eval.display import MINUS, Display, name, number, seeds, tokens
from eval.gather.training import LOSSES, THRESHOLD, WINDOW, bin_mean, spike_rate
from eval.outcomes.dots import objectives_of
from eval.outcomes.trajectory import bands, numbered, on_the_way
from eval.results import BASELINE, HELDOUT, RUN, arms, by_seed, scores, select
from eval.statistics import NOTHING, Interval, mean_interval, paired_difference, relative_improvement
from eval.study import Missing, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLUMNS = [
    *("arch", "objective", "scale_tokens", "quantity", "span", "value", "low", "high", "seeds", "unit"),
    *("difference", "difference_low", "difference_high", "ratio", "ratio_low", "ratio_high"),
]
KINDS = {"loss": "all", "loss_relevant": "relevant", "loss_other": "other"}
SPIKES, NORM = "gradient-norm spikes", "variance of log gradient norm"
PAPER = "paper"


def table(study: Study) -> pd.DataFrame:
    """How much every arm jitters, tidy; less is more stable.

    Columns: arch, objective, scale_tokens, quantity, span (``whole`` training, its ``last half``, ``checkpoints``),
    value, low, high, seeds, unit, and the difference and the ratio to NTP, paired by seed. The difference has a t
    interval; so has the logarithm of a variance's ratio, whose estimate is the geometric mean over seeds. The ratio of
    spikes, of which a run may have none, is that of the means, with Fieller's interval. `quantity` is

    ``training loss, … tokens``
        variance of the unweighted loss of the steps' batches about its local trend (`eval.gather.training`),
    ``gradient-norm spikes``
        per 1000 steps after the warm-up (`eval.gather.training.spikes`),
    ``variance of log gradient norm``
        about its local trend; like the spikes the same whatever a loss is multiplied by,
    ``held-out loss, … tokens``, a benchmark
        variance between neighbouring checkpoints at the largest scale: see `between_checkpoints`.

    Rows with arch ``paper`` are the same of the paper's single trajectory, read off.

    Raises
    ------
    Missing
        If there is neither a training log nor a trajectory.
    """
    records = []
    for quantity, span, unit, rows in [*_training(study), *_checkpoints(study)]:
        for (arch, scale), part in rows.groupby(["arch", "scale_tokens"]):
            base = by_seed(part, objective="ntp")
            for _, objective in arms(part):
                own = by_seed(part, objective=objective)
                key = {"arch": arch, "objective": objective, "scale_tokens": scale, "quantity": quantity, "span": span}
                records.append(
                    key
                    | {"unit": unit}
                    | _compared(own, base, objective, study.settings.confidence, quantity == SPIKES)
                )
    if not records:
        raise Missing("there is no training.parquet, and no three checkpoints of a run were measured")
    return pd.DataFrame([*records, *_reported(study)], columns=COLUMNS)


def between_checkpoints(rows: pd.DataFrame) -> pd.Series:
    """Variance between neighbouring checkpoints of one arm, by seed; empty with fewer than three points.

    What each value is off the line between its neighbours, scaled so that of independent noise the mean square is the
    noise's variance also where steps are unequal (Gasser, Sroka and Jennen-Steinmetz, Biometrika 73, 1986). Over few
    points learning curves are bent, and a fast learner would count as noisy: the seeds' common curve, their mean, is
    taken away first, and the variance that goes with it given back, n / (n − 1). A single seed keeps its curve.

    Parameters
    ----------
    rows
        Columns ``seed``, ``step``, ``value`` and ``point`` (`eval.outcomes.trajectory.numbered`).
    """
    values = rows.pivot(index="seed", columns="point", values="value")
    if values.shape[1] < 3:
        return pd.Series(dtype=float)
    steps, n = rows.groupby("point").step.mean().to_numpy(), len(values)
    left = (steps[2:] - steps[1:-1]) / (steps[2:] - steps[:-2])
    own = values.to_numpy() - (values.to_numpy().mean(axis=0) if n > 1 else 0)
    off = own[:, 1:-1] - left * own[:, :-2] - (1 - left) * own[:, 2:]
    squares = off**2 / (1 + left**2 + (1 - left) ** 2) * (n / (n - 1) if n > 1 else 1)
    return pd.Series(squares.mean(axis=1), index=values.index)


def show(table: pd.DataFrame) -> list[Display]:
    """The largest scale in full, then the ratios to NTP at every scale, then the paper's own trajectory."""
    ours = table[table.arch != PAPER].sort_values("arch", kind="stable")
    scale = ours.scale_tokens.max()
    last = select(ours, scale_tokens=scale)
    rows = []
    for (arch, quantity, span), part in last.groupby(["arch", "quantity", "span"], sort=False):
        row = {"": name(arch), "quantity": quantity, "of": span, "unit": part.unit.iloc[0]}
        for cell in part.itertuples():
            row[name(cell.objective)] = _short(cell.value, cell.low, cell.high)
            if cell.objective != "ntp":
                gap = _short(cell.difference, cell.difference_low, cell.difference_high)
                row[f"{name(cell.objective)} {MINUS} NTP"] = gap
                row[f"{name(cell.objective)} / NTP"] = _ratio(cell)
        rows.append(row)
    note = (
        f"Mean over {seeds(last)} ± half the width of its t interval; differences and ratios are paired by seed: of "
        "variances geometric means with the t interval of the logarithm, of spikes ratios of means with Fieller's. "
        "All losses are unweighted, in nats per token; less is more stable. Variances are about "
        "the local trend, by second differences: learning fast is no instability. Between checkpoints the seeds' "
        "common curve is taken away first"
        + (", which one seed has not: its variance holds the bend of the curve. " if last.seeds.max() == 1 else ". ")
        + f"A spike is a gradient norm above the median of the {WINDOW} steps around it by {THRESHOLD:g} of their "
        "robust standard deviations (1.4826 · MAD), counted after the warm-up, so the measure does not depend on the "
        "scale of a weighted loss. What a batch holds makes most of the training loss's variance; NTP and PRIOR of one "
        "seed saw the same batches."
    )
    shown = [Display(f"Stability at {tokens(float(scale))} caption tokens", pd.DataFrame(rows).fillna(""), note)]
    whole = ours[(ours.span != "checkpoints") & (ours.objective != "ntp")]
    if whole.scale_tokens.nunique() > 1:
        rows = []
        for (arch, objective, quantity, span), part in whole.groupby(
            ["arch", "objective", "quantity", "span"], sort=False
        ):
            row = {"": name(arch), "quantity": quantity, "of": span, "objective": name(objective)}
            row |= {tokens(float(cell.scale_tokens)): _ratio(cell) for cell in part.itertuples()}
            rows.append(row)
        wide = pd.DataFrame(rows).fillna("")
        shown.append(Display("Stability at every scale: ratios to NTP", wide, "Below 1: more stable than NTP."))
    told = table[table.arch == PAPER]
    if len(told):
        rows = [
            {"": name(row.objective), "variance": f"{row.value:.3g}", "over NTP": number(row.ratio, 2)}
            for row in told.itertuples()
        ]
        note = (
            "The paper's average of raw scores (points²), by the same second differences, of the one curve for each "
            "objective that it shows, read off its picture: no interval."
        )
        shown.append(Display("Variance between neighbouring checkpoints in the paper", pd.DataFrame(rows), note))
    return shown


def draw(table: pd.DataFrame, study: Study) -> Figure:
    """A row for each architecture: training loss and gradient norm over the steps, and every ratio to NTP."""
    ours = table[table.arch != PAPER]
    ours = ours[ours.scale_tokens == ours.scale_tokens.max()]
    scale, pairs = int(ours.scale_tokens.max()), sorted(set(ours.arch))
    logs = study.stored.get("training")
    curves = (
        pd.DataFrame() if logs is None else logs[(logs.scale_tokens == scale) & logs.objective.isin(ours.objective)]
    )
    count = ours.quantity.nunique() + (ours.span == "last half").sum() / max(1, len(pairs) * ours.objective.nunique())
    figure = style.figure(11.6 if len(curves) else 6.0, (0.27 * count + 1.0) * len(pairs) + 0.9)
    grid = figure.add_gridspec(len(pairs), 3 if len(curves) else 1, width_ratios=[1, 1, 1.2] if len(curves) else None)
    for row, arch in enumerate(pairs):
        last = row == len(pairs) - 1
        if len(curves):
            part = select(curves, arch=arch)
            axes = figure.add_subplot(grid[row, 0])
            _curve(axes, part, "loss", study.settings.confidence)
            axes.set_title(f"{name(arch)}: training loss, unweighted")
            axes.set_ylabel("nats/token")
            beside = figure.add_subplot(grid[row, 1])
            _curve(beside, part, "grad_norm", study.settings.confidence)
            _curve(beside, part, "grad_norm_max", study.settings.confidence, style.DASHED)
            beside.set_yscale("log")
            _plain(beside.yaxis, (1, 2, 5))
            beside.set_title(f"{name(arch)}: gradient norm before clipping")
            for below in (axes, beside):
                below.set_xlim(left=0)
                if last:
                    below.set_xlabel("training step")
        axes = figure.add_subplot(grid[row, -1])
        _forest(axes, select(ours, arch=arch))
        axes.set_title(f"{name(arch)}: jitter over NTP's (1: as stable)")
        if last:
            axes.set_xlabel("ratio" + (f", {study.settings.confidence:.0%} interval" if ours.seeds.max() > 1 else ""))
    lines = [("median norm of a bin", "-"), ("largest", style.DASHED)] if len(curves) else None
    told = bands(ours, study.settings.confidence) if len(curves) else ""
    style.legend(figure, objectives_of([ours]), lines=lines, note=told)
    style.title(figure, f"Stability of pre-training ({tokens(float(scale))} caption tokens)")
    return figure


def _curve(axes: Axes, part: pd.DataFrame, column: str, confidence: float, line: Any = "-") -> None:
    """Mean over seeds bin by bin, with its interval as a band."""
    for objective in dict.fromkeys(objective for _, objective in arms(part)):
        own = select(part, objective=objective).groupby("bin")
        spans = [mean_interval(values.dropna(), confidence) for _, values in own[column] if values.notna().any()]
        steps = [rows.last_step.mean() for _, rows in own if rows[column].notna().any()]
        colour = style.colour(objective)
        axes.plot(steps, [span.estimate for span in spans], color=colour, linewidth=1.1, linestyle=line)
        bounds = [span.low for span in spans], [span.high for span in spans]
        axes.fill_between(steps, *bounds, color=colour, alpha=0.18, linewidth=0)


def _forest(axes: Axes, rows: pd.DataFrame) -> None:
    """The ratios as dots with their intervals, one below the other, on a log axis."""
    labels = list(dict.fromkeys(zip(rows.quantity, rows.span, strict=True)))
    others = [objective for _, objective in arms(rows) if objective != "ntp"]
    axes.axvline(1, color=style.colour("ntp"), linewidth=1.2, zorder=1)
    for row in rows[rows.objective != "ntp"].itertuples():
        if not np.isfinite(row.ratio) or row.ratio <= 0:
            continue
        shift = 0.22 * (others.index(row.objective) - (len(others) - 1) / 2)
        place, colour = labels.index((row.quantity, row.span)) + shift, style.colour(row.objective)
        axes.plot(row.ratio, place, color=colour, marker=style.marker(row.objective), markersize=5.5, zorder=3)
        if np.isfinite(row.ratio_low):
            # A bound at or below nothing is drawn to the edge of the axis.
            axes.plot([max(row.ratio_low, 1e-3), row.ratio_high], [place] * 2, color=colour, linewidth=1.3, zorder=2)
    drawn = rows[rows.objective != "ntp"]
    ends = pd.concat([drawn.ratio, drawn.ratio_low, drawn.ratio_high])
    ends = ends[np.isfinite(ends) & (ends > 0)]
    axes.set_xscale("log")
    low, high = min([0.5, *ends / 1.2]), max([2.0, *ends * 1.2])
    axes.set_xlim(low, high)
    axes.set_yticks(range(len(labels)), [_place(*label) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", labelsize=7.5)
    _plain(axes.xaxis, (1, 2, 5) if high / low < 100 else (1,))
    axes.grid(axis="y", visible=False)


def _plain(axis: Axis, steps: tuple[int, ...]) -> None:
    """Ticks of a log axis at these steps of each power of ten, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _place(quantity: str, span: str) -> str:
    return quantity if span == "whole" else f"{quantity}, {span}"


def _training(study: Study) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """What the logs tell: quantity, span, unit, and rows with one value for each run."""
    logs = study.stored.get("training")
    if logs is None or logs.empty:
        return
    arm = pd.MultiIndex.from_frame(study.compared[["arch", "objective"]].drop_duplicates())
    logs = logs[pd.MultiIndex.from_frame(logs[["arch", "objective"]]).isin(arm)]
    late = logs[logs.bin >= logs.groupby(RUN).bin.transform("max") / 2]
    for column in LOSSES:
        for span, part in (("whole", logs), ("last half", late)):
            if part[f"{column}_variance"].notna().any():
                quantity = f"training loss, {KINDS[column]} tokens"
                yield quantity, span, "nats²", bin_mean(part, f"{column}_variance").dropna()
    yield NORM, "whole", "log²", bin_mean(logs, "grad_norm_variance").dropna()
    rates = spike_rate(logs).dropna()
    if len(rates):
        yield SPIKES, "whole", "per 1000 steps", rates


def _checkpoints(study: Study) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """What checkpoints on the way tell, as `_training` gives it."""
    models = select(study.compared, picture="with")
    models = models[(models.arch != BASELINE) & (models.scale_tokens == models.scale_tokens.max())]
    found = []
    for metric, kind in KINDS.items():
        found.append((f"held-out loss, {kind} tokens", "nats²", select(models, benchmark=HELDOUT, metric=metric)))
    asked = on_the_way(models)
    for score in scores(asked, study.items):
        rows = select(asked, benchmark=score.benchmark, metric=score.metric)
        found.append((score.label, f"{rows.unit.iloc[0]}²", rows))
    for quantity, unit, rows in found:
        parts = []
        for arch, objective in arms(rows):
            own = numbered(select(rows, arch=arch, objective=objective), f"{arch}/{objective} {quantity}")
            values = between_checkpoints(own).rename_axis("seed").rename("value").reset_index()
            key = {"arch": arch, "objective": objective, "scale_tokens": own.scale_tokens.iloc[0]}
            parts.append(values.assign(**key))
        if parts and len(rows := pd.concat(parts)):
            yield quantity, "checkpoints", unit, rows


def _compared(own: pd.Series, base: pd.Series, objective: str, confidence: float, counts: bool) -> dict[str, float]:
    """Mean of an arm, and its difference and ratio to NTP's."""
    mean, gap, ratio = mean_interval(own, confidence), NOTHING, NOTHING
    if objective != "ntp" and len(base):
        gap = paired_difference(own, base, confidence)
        ratio = _quotient(own, base, confidence, counts)
    return {
        **{"value": mean.estimate, "low": mean.low, "high": mean.high, "seeds": mean.n},
        **{"difference": gap.estimate, "difference_low": gap.low, "difference_high": gap.high},
        **{"ratio": ratio.estimate, "ratio_low": ratio.low, "ratio_high": ratio.high},
    }


def _quotient(own: pd.Series, base: pd.Series, confidence: float, counts: bool) -> Interval:
    """Ratio of `own` to `base`, paired by seed: of means if they are `counts`, which may be 0, else a geometric mean.

    A variance is skewed and its noise is relative: its logarithm is what a t interval is for.
    """
    if counts:
        gain = relative_improvement(own, base, confidence)
        return Interval(
            1 + gain.estimate, max(0.0, 1 + gain.low) if np.isfinite(gain.low) else gain.low, 1 + gain.high, gain.n
        )
    if not ((own > 0).all() and (base > 0).all()):
        return NOTHING
    log = paired_difference(np.log(own), np.log(base), confidence)
    return Interval(float(np.exp(log.estimate)), float(np.exp(log.low)), float(np.exp(log.high)), log.n)


def _reported(study: Study) -> list[dict[str, Any]]:
    """The paper's trajectory, one curve for each objective."""
    curve = study.paper.trajectory
    if len(curve) < 3:
        return []
    values = {}
    for objective in ("ntp", "prior"):
        rows = pd.DataFrame({"seed": 0, "step": curve.step, "point": range(len(curve)), "value": curve[objective]})
        values[objective] = float(between_checkpoints(rows).iloc[0])
    key = {"arch": PAPER, "quantity": "raw average", "span": "checkpoints", "unit": "points²", "seeds": 0}
    ratio = values["prior"] / values["ntp"]
    return [
        key | {"objective": objective, "value": value} | ({"ratio": ratio} if objective == "prior" else {})
        for objective, value in values.items()
    ]


def _short(value: float, low: float, high: float) -> str:
    """``value ± half-width`` to three significant digits; the bare value without an interval."""
    if not np.isfinite(value):
        return ""
    text = f"{value:.3g}" + (f" ± {(high - low) / 2:.2g}" if np.isfinite(low) else "")
    return text.replace("-", MINUS)


def _ratio(cell: Any) -> str:
    if not np.isfinite(cell.ratio):
        return ""
    return f"{cell.ratio:.2f}" + (
        f" [{cell.ratio_low:.2f}, {cell.ratio_high:.2f}]" if np.isfinite(cell.ratio_low) else ""
    )
