"""Trajectories at the largest scale: benchmarks, both averages and losses against the step, beside the paper's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd

from eval import style
from eval.display import Display, name, seeds, spread, tokens
from eval.outcomes.dots import objectives_of
from eval.results import BASELINE, HELDOUT, PAPERS, STAGES, arms, averaged, averages, scores, select
from eval.statistics import Interval, mean_interval, relative_improvement
from eval.study import Missing, Study
from prior.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = [
    *("arch", "objective", "scale_tokens", "quantity", "kind", "stage", "point", "step"),
    *("value", "low", "high", "seeds", "unit"),
]
LOSSES = {"loss_relevant": "loss, relevant tokens", "loss_other": "loss, other tokens", "loss": "loss, all tokens"}
AVERAGES = {"raw": ("raw average", "mean of raw scores"), "corrected": ("corrected average", "0 guessing, 1 perfect")}
PAPER = "paper"
WIDEST = 5


def table(study: Study) -> pd.DataFrame:
    """What checkpoints on the way at the largest scale scored, tidy: a row for each arm, quantity and point.

    Columns: arch (``paper`` for the paper's own), objective, scale_tokens, quantity, kind, stage, point, step, value,
    low, high, seeds, unit. `point` counts the measured steps; seeds may reach one at slightly different steps, of which
    `step` is the mean. `kind` is

    ``score``, ``average``
        a benchmark that was asked on the way, ``raw`` and ``corrected`` (see `eval.results.averages`) over these
        benchmarks if there are several,
    ``loss``
        held-out loss on relevant, other and all tokens,
    ``best``
        by how many percent an objective's best checkpoint is better than NTP's best: of each seed the largest value,
        ratio of their means minus one with Fieller's interval, paired by seed; `point` and `step` are missing.

    Raises
    ------
    Missing
        If nothing was measured before the last step.
    UserError
        If the seeds of an arm were measured at different numbers of steps.
    """
    models = select(study.compared, picture="with")
    models = models[models.arch != BASELINE]
    models = models[models.scale_tokens == models.scale_tokens.max()]
    curves = [*_benchmarks(models, study.items), *_losses(models)]
    if not curves:
        raise Missing("nothing was measured before the last step")
    scale, confidence = int(models.scale_tokens.max()), study.settings.confidence
    records: list[dict[str, Any]] = []
    for quantity, kind, unit, rows in curves:
        for arch, objective in arms(rows):
            own = numbered(select(rows, arch=arch, objective=objective), f"{arch}/{objective} {quantity}")
            key = {"arch": arch, "objective": objective, "scale_tokens": scale, "quantity": quantity, "unit": unit}
            key["stage"] = own.stage.iloc[0]
            for point, part in own.groupby("point"):
                mean = mean_interval(part.value, confidence)
                records.append(key | {"kind": kind, "point": point, "step": part.step.mean()} | _bounds(mean))
            if kind == "loss" or quantity == "corrected" or objective == "ntp":
                continue
            base = select(rows, arch=arch, objective="ntp")
            # The best of more checkpoints would be better for their number alone.
            if len(base) == len(own):
                best, bar = (part.groupby("seed").value.max() for part in (own, base))
                gain = relative_improvement(best, bar, confidence)
                percent = Interval(100 * gain.estimate, 100 * gain.low, 100 * gain.high, gain.n)
                records.append(key | {"kind": "best", "unit": "percent"} | _bounds(percent))
    return pd.DataFrame([*records, *_reported(study)], columns=COLUMNS).astype({"point": "Int64"})


def show(table: pd.DataFrame) -> list[Display]:
    """Scores and losses step by step, then best checkpoint against best checkpoint."""
    ours = table[table.arch != PAPER]
    scale, count = tokens(float(ours.scale_tokens.max())), seeds(ours)
    asked = [quantity for quantity in dict.fromkeys(ours[ours.kind == "score"].quantity)]
    told = f"Asked on the way: {', '.join(asked)}." if asked else "No benchmark was asked on the way."
    shown = []
    for title, kinds, digits in (("scores", ("score", "average"), 1), ("held-out loss", ("loss",), 3)):
        part = ours[ours.kind.isin(kinds)]
        if part.empty:
            continue
        rows = []
        for (arch, objective, point), cells in part.groupby(["arch", "objective", "point"], sort=False):
            steps = sorted({round(step) for step in cells.step})
            row = {"": f"{name(arch)} {name(objective)}", "point": str(point), "step": "/".join(map(str, steps))}
            for cell in cells.itertuples():
                places = 3 if cell.quantity == "corrected" else digits
                row[_label(cell.quantity)] = spread(cell.value, cell.low, cell.high, places)
            rows.append(row)
        note = f"Mean over {count} ± half the width of its t interval. "
        note += told if title == "scores" else "Nats per token, unweighted."
        shown.append(Display(f"Trajectory at {scale} caption tokens: {title}", pd.DataFrame(rows).fillna(""), note))
    best = table[table.kind == "best"]
    if (best.arch != PAPER).any():
        rows = [
            {
                "": "the paper" if row.arch == PAPER else name(row.arch),
                "quantity": _label(row.quantity),
                "objective": name(row.objective),
                "over NTP, %": spread(row.value, row.low, row.high, 1, sign=True, bounds=True),
            }
            for row in best.itertuples()
        ]
        note = (
            "Each seed's best checkpoint, whichever it is; ratio of the means minus one, paired by seed, with "
            "Fieller's interval. The best of several noisy checkpoints is above what any of them is worth, the more "
            "so the noisier they are."
        )
        shown.append(Display("Best checkpoint against NTP's best checkpoint", pd.DataFrame(rows), note))
    return shown


def draw(table: pd.DataFrame, study: Study) -> Figure:
    """A panel for each quantity, the architectures below each other, and the paper's trajectory at the end."""
    ours = table[~table.kind.isin(["best", PAPER]) & (table.arch != PAPER)]
    quantities = [quantity for quantity in dict.fromkeys(ours.quantity) if not _redundant(quantity, ours)]
    pairs = sorted(set(ours.arch))
    # Some panels beside each other can be read; more go below, in blocks of all architectures.
    blocks = -(-(len(quantities) + 1) // WIDEST)
    width = -(-(len(quantities) + 1) // blocks)
    figure = style.figure(3.0 * width + 0.2, 2.6 * len(pairs) * blocks + 0.9)
    grid = figure.add_gridspec(len(pairs) * blocks, width)
    for place, quantity in enumerate(quantities):
        top, column = len(pairs) * (place // width), place % width
        part = select(ours, quantity=quantity)
        first: Axes | None = None
        for row, arch in enumerate(pairs):
            axes = figure.add_subplot(grid[top + row, column], sharex=first, sharey=first)
            first = first or axes
            for _, objective in arms(select(part, arch=arch)):
                curve = select(part, arch=arch, objective=objective)
                colour, marker = style.colour(objective), style.marker(objective)
                axes.fill_between(curve.step, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
                axes.plot(curve.step, curve.value, color=colour, marker=marker, markersize=4)
            axes.set_title(f"{name(arch)}: {_label(quantity)}")
            axes.set_ylabel(part.unit.iloc[0])
            if row == len(pairs) - 1:
                axes.set_xlabel("training step")
        if first is not None:
            # Only now: a limit set earlier would cut what the later rows draw.
            first.set_xlim(left=0)
    axes = figure.add_subplot(grid[len(pairs) * (blocks - 1) :, len(quantities) % width])
    reported = select(table, arch=PAPER)
    for objective in PAPERS:
        curve = reported[(reported.objective == objective) & (reported.kind != "best")]
        axes.plot(curve.step, curve.value, color=style.colour(objective), marker=style.marker(objective), markersize=4)
    axes.set_title("Reported by the paper:\nraw average score", color=style.MUTED)
    axes.set_xlabel("training step")
    axes.set_ylabel("mean of six raw benchmark scores (read off, ±1)")
    axes.set_xlim(left=0)
    style.legend(figure, objectives_of([ours]), note=bands(ours, study.settings.confidence))
    style.title(figure, f"Trajectories at the largest scale ({tokens(float(ours.scale_tokens.max()))} caption tokens)")
    return figure


def bands(rows: pd.DataFrame, confidence: float) -> str:
    """What the bands of a figure are, for its legend."""
    return f"bands: {confidence:.0%} t intervals over seeds" if rows.seeds.max() > 1 else "one seed: no bands"


def numbered(rows: pd.DataFrame, what: str) -> pd.DataFrame:
    """Rows of one arm and quantity with `point`: which of its seed's measured steps each is, counted from 1.

    Raises
    ------
    UserError
        If a seed lacks one: which one would be a guess, and a mean over the others a mean over fewer seeds.
    """
    counts = rows.groupby("seed").step.nunique()
    if counts.nunique() > 1:
        least, most = counts.idxmin(), counts.max()
        raise UserError(
            f"metrics.csv: {what}: seed{least} was measured at {counts.min()} steps and another at {most}; "
            "predict and score what is missing"
        )
    return rows.assign(point=rows.groupby("seed").step.rank(method="dense").astype(int))


def on_the_way(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the benchmarks that one run answered at several steps of one stage, at the latest such stage."""
    asked = rows[rows.benchmark != HELDOUT]
    run = ["arch", "objective", "scale_tokens", "seed", "stage"]
    several = asked.groupby(["benchmark", *run]).step.transform("nunique") > 1
    # By benchmark and stage alone: an arm of which only the end was asked still has its point.
    found = asked[several][["benchmark", "stage"]].drop_duplicates()
    found = found.loc[found.stage.map(STAGES).groupby(found.benchmark).idxmax()]
    return asked.merge(found, on=["benchmark", "stage"])


def _benchmarks(models: pd.DataFrame, items: pd.DataFrame) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """Benchmarks that were asked on the way and their averages: quantity, kind, unit, rows."""
    asked = on_the_way(models)
    if asked.empty:
        return
    columns = scores(asked, items)
    for score in columns:
        rows = select(asked, benchmark=score.benchmark, metric=score.metric)
        yield score.label, "score", rows.unit.iloc[0], rows
    if len(averaged(columns)) < 2:
        return
    records = []
    for (arch, objective, stage, step), part in asked.groupby(["arch", "objective", "stage", "step"]):
        for kind, values in averages(part, columns).items():
            # Where one of the benchmarks was not asked, there is no average.
            records += [(kind, arch, objective, stage, step, seed, value) for seed, value in values.dropna().items()]
    found = pd.DataFrame(records, columns=["kind", "arch", "objective", "stage", "step", "seed", "value"])
    for kind, (_, unit) in AVERAGES.items():
        if len(rows := select(found, kind=kind)):
            yield kind, "average", unit, rows


def _losses(models: pd.DataFrame) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    for metric in LOSSES:
        rows = select(models, benchmark=HELDOUT, metric=metric)
        if len(rows) and rows.groupby(["arch", "objective", "seed"]).step.nunique().max() > 1:
            yield metric, "loss", "nats/token", rows


def _reported(study: Study) -> Iterator[dict[str, Any]]:
    """The paper's trajectory, and its best checkpoint against its best."""
    curve = study.paper.trajectory
    key = {"arch": PAPER, "quantity": "raw", "stage": "", "seeds": 0}
    unit = AVERAGES["raw"][1]
    for objective in PAPERS:
        for point, row in enumerate(curve.itertuples(), start=1):
            place = {"kind": "average", "point": point, "step": row.step, "unit": unit}
            yield key | place | {"objective": objective, "value": getattr(row, objective)}
    gain = 100 * (curve.prior.max() / curve.ntp.max() - 1)
    yield key | {"kind": "best", "objective": "prior", "value": gain, "unit": "percent"}


def _bounds(mean: Interval) -> dict[str, float]:
    return {"value": mean.estimate, "low": mean.low, "high": mean.high, "seeds": mean.n}


def _label(quantity: str) -> str:
    return LOSSES.get(quantity) or AVERAGES.get(quantity, (quantity, ""))[0]


def _redundant(quantity: str, rows: pd.DataFrame) -> bool:
    """Loss on all tokens is drawn only where its parts are not known."""
    return quantity == "loss" and "loss_relevant" in set(rows.quantity)
