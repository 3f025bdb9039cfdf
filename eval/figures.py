"""Every figure: one function each, tables in, a matplotlib figure out; and the function that writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eval import hallucination, style
from eval.display import name, spread, tokens
from eval.results import BASELINE, HELDOUT, STAGES, Paper, arms, by_seed, largest, scores, select
from eval.scaling import PowerLaw, quantities
from eval.statistics import mean_interval, paired_difference, testable
from eval.tables import averages
from prior.config import Statistics
from prior.files import whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS_LABEL = "held-out loss (nats/token)"
KINDS = {"loss_relevant": "relevant tokens", "loss_other": "other tokens", "loss": "all tokens"}


def scaling(metrics: pd.DataFrame, fits: list[dict[str, Any]], settings: Statistics) -> Figure:
    """Loss on relevant and other tokens and mean benchmark error against caption tokens, with the fits."""
    found = quantities(metrics)
    kinds = [key for key in ("loss_relevant", "loss_other", "loss") if key in found]
    losses = [key for key in kinds if key != "loss"] or kinds
    shown = {key: found[key] for key in [*losses, *(["error"] if "error" in found else [])]}
    return _scaling_grid(
        shown,
        fits,
        settings,
        f"Held-out loss{' and benchmark error' if 'error' in shown else ''} against caption tokens, with power laws",
    )


def scaling_benchmarks(metrics: pd.DataFrame, fits: list[dict[str, Any]], settings: Statistics) -> Figure | None:
    """The error of each benchmark against caption tokens; None where fewer than two were asked at several scales."""
    found = {key: table for key, table in quantities(metrics).items() if key.startswith("error:")}
    found = {key: table for key, table in found.items() if table.scale_tokens.nunique() > 1}
    if len(found) < 2:
        return None
    return _scaling_grid(found, fits, settings, "Benchmark error against caption tokens, with power laws", down=True)


def trajectory(metrics: pd.DataFrame, items: pd.DataFrame, settings: Statistics, paper: Paper) -> Figure | None:
    """Loss (and scores, where asked) against training step at the largest scale, with the paper's own trajectory.

    None where only the last step was evaluated.
    """
    models = metrics[(metrics.arch != BASELINE) & (metrics.picture == "with")]
    models = models[models.scale_tokens == models.scale_tokens.max()]
    losses = select(models, benchmark=HELDOUT)
    panels: list[tuple[str, str, pd.DataFrame]] = []
    for metric in ("loss_relevant", "loss_other", "loss"):
        part = select(losses, metric=metric)
        if part.step.nunique() > 1 and not (metric == "loss" and panels):
            panels.append((f"loss, {KINDS[metric]}", LOSS_LABEL, part))
    pairs = sorted({arch for arch, _ in arms(models)})
    raw = _raw_trajectory(models, items)
    if len(raw):
        panels.append(("raw average score", "mean of raw scores", raw))
    if not panels:
        return None
    width = len(panels) + 1
    figure = style.figure(3.0 * width, 2.7 * len(pairs) + 0.6)
    grid = figure.add_gridspec(len(pairs), width)
    for column, (title, label, part) in enumerate(panels):
        first: Axes | None = None
        for row, arch in enumerate(pairs):
            axes = figure.add_subplot(grid[row, column], sharex=first)
            first = first or axes
            for _, objective in [arm for arm in arms(part) if arm[0] == arch]:
                centres = _by_point(select(part, arch=arch, objective=objective), settings)
                colour = style.colour(objective)
                axes.fill_between(centres.step, centres.low, centres.high, color=colour, alpha=0.18, linewidth=0)
                marker = style.marker(objective)
                axes.plot(centres.step, centres.value, color=colour, marker=marker, markersize=4, label=name(objective))
            axes.set_title(f"{name(arch)}: {title}")
            axes.set_ylabel(label)
            if row == len(pairs) - 1:
                axes.set_xlabel("training step")
        if first is not None:
            # Only now: a limit set earlier would cut what the later rows draw.
            first.set_xlim(left=0)
    axes = figure.add_subplot(grid[:, width - 1])
    for objective in ("ntp", "prior"):
        style_of = {"color": style.colour(objective), "marker": style.marker(objective), "markersize": 4}
        axes.plot(paper.trajectory.step, paper.trajectory[objective], label=name(objective), **style_of)
    axes.set_title("Reported by the paper:\nraw average score", color=style.MUTED)
    axes.set_xlabel("training step")
    axes.set_ylabel("mean of six raw benchmark scores (read off, ±1)")
    axes.set_xlim(left=0)
    style.legend(figure, _objectives([models]))
    scale = tokens(float(models.scale_tokens.max()))
    style.title(figure, f"Training trajectories at the largest scale ({scale} caption tokens)")
    return figure


def losses(metrics: pd.DataFrame, settings: Statistics) -> Figure | None:
    """Loss on relevant, other and all tokens at the largest scale, per objective, with and without the picture."""
    rows = select(largest(metrics), benchmark=HELDOUT)
    kinds = [metric for metric in KINDS if metric in set(rows.metric)]
    if not kinds:
        return None
    pairs = sorted({arch for arch, _ in arms(rows)})
    figure = style.figure(4.4 * len(pairs) + 0.4, 3.9)
    first: Axes | None = None
    for column, arch in enumerate(pairs):
        axes = figure.add_subplot(1, len(pairs), column + 1, sharey=first)
        first = first or axes
        objectives = [objective for owner, objective in arms(rows) if owner == arch]
        for place, metric in enumerate(kinds):
            for index, objective in enumerate(objectives):
                x = place + 0.26 * (index - (len(objectives) - 1) / 2)
                for picture in ("without", "with"):
                    values = by_seed(rows, arch=arch, objective=objective, metric=metric, picture=picture)
                    if len(values):
                        _dot(axes, x, values, objective, settings, hollow=picture == "without")
            _note_gap(axes, place, rows, arch, metric, settings)
        axes.set_xticks(range(len(kinds)), [KINDS[metric] for metric in kinds])
        axes.set_xlim(-0.55, len(kinds) - 0.45)
        axes.set_title(name(arch))
        axes.grid(axis="x", visible=False)
        if column == 0:
            axes.set_ylabel(LOSS_LABEL)
    if first is not None:
        first.set_ylim(0, first.get_ylim()[1] * 1.22)
        style.legend(figure, _objectives([rows]), hollow="without the picture", note="numbers: PRIOR − NTP")
    scale = tokens(float(rows.scale_tokens.max()))
    subject = "Held-out loss on tokens the picture decides and on the others" if len(kinds) > 1 else "Held-out loss"
    style.title(figure, f"{subject} ({scale} caption tokens)")
    return figure


def benchmarks(metrics: pd.DataFrame, items: pd.DataFrame, settings: Statistics) -> Figure | None:
    """Each benchmark's score as a share of its maximum, beside guessing, constant answers and the missing picture."""
    columns = [score for score in scores(metrics, items) if np.isfinite(score.best)]
    if not columns:
        return None
    rows, pairs = largest(metrics), sorted({arch for arch, _ in arms(metrics)})
    figure = style.figure(4.4 * len(pairs) + 0.8, 0.62 * len(columns) + 1.9)
    verdicts = {score.label: testable(metrics, score, settings) for score in columns}
    first: Axes | None = None
    for index, arch in enumerate(pairs):
        axes = figure.add_subplot(1, len(pairs), index + 1, sharex=first)
        first = first or axes
        objectives = [objective for owner, objective in arms(rows) if owner == arch]
        for place, score in enumerate(columns):
            where = {"benchmark": score.benchmark, "metric": score.metric}
            share = 100 / score.best
            for objective, part in select(metrics, arch=BASELINE, **where).groupby("objective"):
                guessed = objective == "random"
                at = share * (score.chance if guessed and np.isfinite(score.chance) else part.value.mean())
                line = "-" if guessed else style.DOTTED
                axes.plot([at, at], [place - 0.36, place + 0.36], color=style.MUTED, linestyle=line, linewidth=1.4)
            for number, objective in enumerate(objectives):
                y = place + 0.3 * (number - (len(objectives) - 1) / 2)
                for picture in ("without", "with"):
                    values = by_seed(rows, arch=arch, objective=objective, picture=picture, **where) * share
                    if len(values):
                        _dot(axes, y, values, objective, settings, hollow=picture == "without", across=True)
        labels = [score.label + ("" if verdicts[score.label][arch].testable else " †") for score in columns]
        axes.set_yticks(range(len(columns)), labels)
        axes.set_ylim(len(columns) - 0.5, -0.5)
        axes.set_xlim(-3, 103)
        axes.grid(axis="y", visible=False)
        axes.set_title(name(arch))
        axes.set_xlabel("score (% of the benchmark's maximum)")
    if first is not None:
        marked = any(not verdict.testable for found in verdicts.values() for verdict in found.values())
        note = "† not testable" if marked else ""
        degenerate = [("expected from guessing", "-"), ("constant answers", style.DOTTED)]
        style.legend(figure, _objectives([rows]), hollow="without the picture", lines=degenerate, note=note)
    scale = tokens(float(rows.scale_tokens.max()))
    style.title(figure, f"Benchmark scores beside degenerate answers ({scale} caption tokens)")
    return figure


def reference_scores(scored: pd.DataFrame) -> Figure:
    """Distribution of the reference LLM's probability of a token, for tokens the picture decides and for the others.

    `scored` holds a row for each token: ``p_r`` (0-1) and ``relevant`` (bool; missing where unknown: then one
    distribution).
    """
    figure = style.figure(6.6, 3.4)
    axes = figure.add_subplot()
    edges = np.linspace(0, 1, 26)
    if scored.relevant.notna().all():
        decided = scored.relevant.astype(bool)
        groups = {"relevant": scored[decided], "other": scored[~decided]}
    else:
        groups = {"all": scored}
    for key, part in groups.items():
        share = np.histogram(part.p_r, bins=edges)[0] * 100 / max(len(part), 1)
        colour = style.TOKENS[key]
        label = f"{key} tokens: {len(part):,}, mean {part.p_r.mean():.2f}"
        axes.stairs(share, edges, color=colour, linewidth=1.6, label=label)
        axes.stairs(share, edges, color=colour, alpha=0.15, fill=True)
    axes.set_xlim(0, 1)
    axes.set_xlabel("probability under the text-only reference, $p_r$   (PRIOR's weight falls from left to right)")
    axes.set_ylabel("share of the tokens (%)")
    axes.legend(loc="upper center")
    style.title(figure, "What the text-only reference LLM expects of caption tokens")
    return figure


def all_figures(
    metrics: pd.DataFrame,
    items: pd.DataFrame,
    fits: list[dict[str, Any]],
    settings: Statistics,
    paper: Paper,
    scored: pd.DataFrame | None = None,
) -> dict[str, Callable[[], Figure | None]]:
    """Every figure by name, not yet drawn; those for which there is nothing to show draw None."""
    return {
        "scaling": lambda: scaling(metrics, fits, settings),
        "scaling_benchmarks": lambda: scaling_benchmarks(metrics, fits, settings),
        "trajectory": lambda: trajectory(metrics, items, settings, paper),
        "losses": lambda: losses(metrics, settings),
        "benchmarks": lambda: benchmarks(metrics, items, settings),
        "hallucination": lambda: hallucination.figure(metrics, settings),
        "scores": lambda: None if scored is None or scored.empty else reference_scores(scored),
    }


def write_figures(
    metrics: pd.DataFrame,
    items: pd.DataFrame,
    fits: list[dict[str, Any]],
    settings: Statistics,
    paper: Paper,
    folder: str | Path,
    scored: pd.DataFrame | None = None,
) -> list[Path]:
    """Write ``<name>.pdf`` and ``<name>.png`` of every figure into `folder`, always the same bytes."""
    paths = []
    with style.context():
        for key, draw in all_figures(metrics, items, fits, settings, paper, scored).items():
            figure = draw()
            if figure is None:
                continue
            for ending in ("pdf", "png"):
                path = Path(folder) / f"{key}.{ending}"
                with whole(path) as temporary:
                    figure.savefig(temporary, format=ending, metadata=style.METADATA[ending])
                paths.append(path)
    return paths


def _scaling_grid(
    found: dict[str, pd.DataFrame], fits: list[dict[str, Any]], settings: Statistics, title: str, down: bool = False
) -> Figure:
    """Log-log panels, one per architecture and quantity; quantities run across, or `down`."""
    pairs = sorted({arch for table in found.values() for arch in table.arch})
    rows, columns = (len(found), len(pairs)) if down else (len(pairs), len(found))
    figure = style.figure(max(3.1 * columns, 5.0), (2.6 if down else 2.95) * rows + 0.6)
    laws = {(fit["arch"], fit["objective"], fit["quantity"], fit["form"]): fit for fit in fits if fit["kind"] == "fit"}
    floors = False
    for place, (quantity, table) in enumerate(found.items()):
        first: Axes | None = None
        for index, arch in enumerate(pairs):
            row, column = (place, index) if down else (index, place)
            axes = figure.add_subplot(rows, columns, row * columns + column + 1, sharex=first, sharey=first)
            first = first or axes
            objectives = [objective for owner, objective in arms(table) if owner == arch]
            for number, objective in enumerate(objectives):
                fit = laws.get((arch, objective, quantity, "power"))
                floor = laws.get((arch, objective, quantity, "power_floor"))
                arm = select(table, arch=arch, objective=objective)
                # Seeds stand beside their mean, NTP's to the left: otherwise the marker hides them.
                aside = 1 + 0.09 * (number - (len(objectives) - 1) / 2)
                floors |= _scaling_arm(axes, arm, objective, fit, floor, aside)
                line = len(objectives) - 1 - number
                style.note(axes, line, _exponent(objective, fit), style.colour(objective))
            style.log_axes(axes, sorted(set(table.scale_tokens)), [tokens(x) for x in sorted(set(table.scale_tokens))])
            axes.set_title(f"{name(arch)}: {name(quantity)}", pad=6 + 11 * len(objectives))
            axes.set_ylabel("error (1 − accuracy)" if quantity.startswith("error") else LOSS_LABEL)
            if row == rows - 1:
                axes.set_xlabel("caption tokens")
    lines = [("$A\\,x^{-b}$", "-"), *([("$E + A\\,x^{-b}$", style.DASHED)] if floors else [])]
    style.legend(figure, _objectives(list(found.values())), lines=lines, small="one seed")
    style.title(figure, title)
    return figure


def _scaling_arm(
    axes: Axes,
    rows: pd.DataFrame,
    objective: str,
    fit: dict[str, Any] | None,
    floor: dict[str, Any] | None,
    aside: float,
) -> bool:
    """Draw one arm's seeds, means and fits; say whether the fit with a floor was among them."""
    colour = style.colour(objective)
    mean = rows.groupby("scale_tokens").value.mean()
    axes.scatter(rows.scale_tokens * aside, rows.value, s=10, color=colour, alpha=0.45, linewidth=0)
    axes.plot(mean.index, mean, linestyle="none", color=colour, marker=style.marker(objective), markersize=5)
    x = np.geomspace(mean.index.min() / 1.15, mean.index.max() * 1.15, 60)
    drawn = [bool(record and record["mean_fit"] and record["mean_fit"]["converged"]) for record in (fit, floor)]
    for record, line, draw in ((fit, "-", drawn[0]), (floor, style.DASHED, drawn[1])):
        if record and draw:
            axes.plot(x, PowerLaw(**record["mean_fit"])(x), color=colour, linestyle=line, linewidth=1.2)
    return drawn[1]


def _exponent(objective: str, fit: dict[str, Any] | None) -> str:
    """The exponent over seeds as ``NTP b = 0.20 ± 0.01``, or that there is none."""
    found: dict[str, Any] = fit["exponent"] if fit else {"estimate": None}
    if found["estimate"] is None:
        return f"{name(objective)}  no fit"
    value, low, high = (
        float("nan") if found[key] is None else float(found[key]) for key in ("estimate", "low", "high")
    )
    return f"{name(objective)}  b = {spread(value, low, high, 3)}"


def _objectives(tables: list[pd.DataFrame]) -> list[str]:
    """Objectives in the order of legends."""
    return list(dict.fromkeys(objective for table in tables for _, objective in arms(table)))


def _by_point(rows: pd.DataFrame, settings: Statistics) -> pd.DataFrame:
    """Mean and interval over seeds of each evaluated point; seeds may reach it at slightly different steps."""
    rows = rows.assign(point=rows.groupby("seed").step.rank(method="dense"))
    records = []
    for _, part in rows.groupby("point"):
        if part.seed.nunique() == rows.seed.nunique():
            mean = mean_interval(part.value, settings.confidence)
            records.append((part.step.mean(), mean.estimate, mean.low, mean.high))
    return pd.DataFrame(records, columns=["step", "value", "low", "high"])


def _raw_trajectory(models: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    """The raw average of each run at each step where every averaged benchmark was asked; empty if only at one."""
    asked = models[models.benchmark != HELDOUT]
    columns, records = scores(asked, items), []
    if columns:
        for (stage, arch, objective, step), part in asked.groupby(["stage", "arch", "objective", "step"]):
            raw = averages(part, columns).get("raw", pd.Series(dtype=float))
            records += [(stage, arch, objective, step, seed, value) for seed, value in raw.dropna().items()]
    table = pd.DataFrame(records, columns=["stage", "arch", "objective", "step", "seed", "value"])
    # Steps of tuning and of pre-training are different clocks: the later stage is shown.
    table = table[table.stage == max(table.stage, key=lambda stage: STAGES[stage], default="none")]
    # Runs of different length end at different steps: what counts is how often one of them was asked.
    several = len(table) and table.groupby(["arch", "objective", "seed"]).size().max() > 1
    return table if several else table[:0]


def _dot(
    axes: Axes,
    at: float,
    values: pd.Series,
    objective: str,
    settings: Statistics,
    hollow: bool,
    across: bool = False,
) -> None:
    """The mean of the seeds with its interval; hollow for the model without its picture."""
    mean = mean_interval(values, settings.confidence)
    colour = style.colour(objective)
    face = "white" if hollow else colour
    half = None if mean.n == 1 else [mean.half_width]
    x, y = (mean.estimate, at) if across else (at, mean.estimate)
    bars = {"xerr" if across else "yerr": half}
    look = {"color": colour, "markerfacecolor": face, "marker": style.marker(objective), "markersize": 6}
    axes.errorbar(x, y, **bars, **look, linestyle="none", elinewidth=1.2, capsize=2.5, zorder=2 if hollow else 3)


def _note_gap(axes: Axes, place: int, rows: pd.DataFrame, arch: str, metric: str, settings: Statistics) -> None:
    """Write PRIOR's difference to NTP above its pair of dots."""
    where = {"arch": arch, "metric": metric, "picture": "with"}
    ours, base = by_seed(rows, objective="prior", **where), by_seed(rows, objective="ntp", **where)
    if ours.empty or base.empty:
        return
    gap = paired_difference(ours, base, settings.confidence)
    text = f"{gap.estimate:+.3f}".replace("-", "−") + (f"\n± {gap.half_width:.3f}" if gap.n > 1 else "")
    shown = select(rows, arch=arch, metric=metric)
    spans = [mean_interval(part.value, settings.confidence) for _, part in shown.groupby(["objective", "picture"])]
    top = max(shown.value.max(), *(span.high for span in spans if np.isfinite(span.high)), 0)
    offset = {"xytext": (0, 9), "textcoords": "offset points"}
    axes.annotate(text, (place, top), **offset, ha="center", fontsize=8, color=style.MUTED)
