"""The ablation of α, NTP being α = 0: benchmarks and held-out losses of each α where there are several."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd

from eval import style
from eval.chair import EQUAL
from eval.display import Display, name, seeds, spread, tokens
from eval.outcomes.trajectory import AVERAGES, LOSSES
from eval.results import BASELINE, HELDOUT, STAGES, averaged, averages, by_seed, scores, select
from eval.statistics import NOTHING, mean_interval, paired_difference
from eval.study import Missing, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = [
    *("arch", "objective", "alpha", "scale_tokens", "stage", "step", "quantity", "kind", "value", "low", "high"),
    *("seeds", "unit", "to_ntp", "to_ntp_low", "to_ntp_high", "to_one", "to_one_low", "to_one_high"),
]
INVENTED = ("CHAIR", "chair_i" + EQUAL)
SHORTER = (
    " CHAIR_i: a caption is read no further than the shorter of NTP's and PRIOR's of that picture; one that ends "
    "earlier is whole, and had fewer words to make things up in."
)


def table(study: Study) -> pd.DataFrame:
    """Every α at the scales that have one beside NTP's 0 and PRIOR's 1, tidy.

    Columns: arch, objective, alpha, scale_tokens, stage, step, quantity, kind (``score``, ``average`` or ``loss``),
    value, low, high, seeds, unit, and the differences to NTP (`to_ntp`) and to α = 1 (`to_one`), paired by seed.
    `quantity` is a benchmark, ``raw`` or ``corrected`` (`eval.results.averages`), CHAIR's ``chair_i`` of captions that
    are read no further than NTP's and PRIOR's go, or a held-out loss. `step` is the mean over seeds of the step that is
    compared: the last, or, where some α end earlier, the largest at which every α was measured. What never was at one
    step is left out.

    Raises
    ------
    Missing
        If no scale has more α than those.
    """
    models = study.metrics[(study.metrics.arch != BASELINE) & (study.metrics.picture == "with")]
    models = models[models.objective.isin(study.alphas)]
    records: list[dict[str, Any]] = []
    for (scale, arch), part in models.groupby(["scale_tokens", "arch"]):
        objectives = sorted(set(part.objective), key=lambda key: (study.alphas[key], key))
        alphas = [study.alphas[objective] for objective in objectives]
        if not set(alphas) - {0.0, 1.0}:
            continue
        ntp = next((key for key in objectives if study.alphas[key] == 0), None)
        one = next((key for key in objectives if study.alphas[key] == 1), None)
        for quantity, kind, unit, rows in _quantities(shared(part), study.items):
            for objective, alpha in zip(objectives, alphas, strict=True):
                own = by_seed(rows, objective=objective)
                if own.empty:
                    continue
                place = select(rows, objective=objective)
                mean = mean_interval(own, study.settings.confidence)
                record = {"arch": arch, "objective": objective, "alpha": alpha, "scale_tokens": scale, "unit": unit}
                record |= {"stage": place.stage.iloc[0], "step": place.step.mean(), "quantity": quantity, "kind": kind}
                record |= {"value": mean.estimate, "low": mean.low, "high": mean.high, "seeds": mean.n}
                for column, other in (("to_ntp", ntp), ("to_one", one)):
                    base = by_seed(rows, objective=other)
                    gap = NOTHING
                    if objective != other and len(base):
                        gap = paired_difference(own, base, study.settings.confidence)
                    record |= {column: gap.estimate, f"{column}_low": gap.low, f"{column}_high": gap.high}
                records.append(record)
    if not records:
        raise Missing("no scale was trained under another α than NTP's 0 and PRIOR's 1")
    return pd.DataFrame(records, columns=COLUMNS)


def shared(part: pd.DataFrame) -> pd.DataFrame:
    """Rows of one architecture and scale at the points that all objectives can be compared at.

    Per benchmark the latest stage and each run's last step, if all pre-trainings are equally long in each seed.
    Otherwise tuned checkpoints are of unequal ones, and of pre-training the largest step counts that all runs have.
    """
    ends = part[part.stage == "pretrain"].groupby(["seed", "objective"]).step.max()
    if (ends.groupby("seed").nunique() <= 1).all():
        stage = part.stage.map(STAGES)
        part = part[stage == stage.groupby(part.benchmark).transform("max")]
        return part[part.step == part.groupby(["objective", "seed", "benchmark"]).step.transform("max")]
    part = part[part.stage == "pretrain"]
    runs = len(part[["objective", "seed"]].drop_duplicates())
    measured = part.groupby(["benchmark", "metric", "step"]).value.transform("size")
    part = part[measured == runs]
    return part[part.step == part.groupby(["benchmark", "metric"]).step.transform("max")]


def show(table: pd.DataFrame) -> list[Display]:
    """A row for each α: scores with differences to NTP, then losses with theirs, then differences to α = 1."""
    shown = []
    for scale, part in table.groupby("scale_tokens"):
        where = f"at {tokens(float(scale))} caption tokens"
        note = f"Mean over {seeds(part)} ± half the width of its t interval. {_steps(part)}"
        for title, kinds in (("benchmarks", ("average", "score")), ("held-out loss", ("loss",))):
            cells = part[part.kind.isin(kinds)]
            if cells.empty:
                continue
            unit = " In nats per token, unweighted." if title == "held-out loss" else ""
            cut = SHORTER if INVENTED[1] in set(cells.quantity) else ""
            values = _layout(cells, ("value", "low", "high"), sign=False)
            shown.append(Display(f"α {where}: {title}", values, note + unit + cut))
            for column, other in (("to_ntp", "NTP"), ("to_one", "α = 1")):
                if cells[column].notna().any():
                    gaps = _layout(cells[cells[column].notna()], (column, f"{column}_low", f"{column}_high"), sign=True)
                    title_of = f"α {where}: {title}, minus {other}"
                    shown.append(Display(title_of, gaps, "Differences paired by seed, with their t intervals."))
    return shown


def draw(table: pd.DataFrame, study: Study) -> Figure:
    """Average score and held-out losses against α at the largest scale of the ablation; a row per architecture."""
    scale = table.scale_tokens.max()
    rows = select(table, scale_tokens=scale)
    there = set(rows.quantity)
    wanted = [next((key for key in ("corrected", "raw") if key in there), ""), "loss_relevant", "loss_other"]
    panels = [key for key in wanted if key in there] or ["loss"]
    if not set(LOSSES) & set(panels) and "loss" in there:
        panels.append("loss")
    pairs, alphas = sorted(set(rows.arch)), sorted(set(rows.alpha))
    figure = style.figure(3.5 * len(panels) + 0.3, 2.6 * len(pairs) + 0.8)
    grid = figure.add_gridspec(len(pairs), len(panels))
    for row, arch in enumerate(pairs):
        for column, quantity in enumerate(panels):
            axes = figure.add_subplot(grid[row, column])
            part = select(rows, arch=arch, quantity=quantity)
            places = [alphas.index(alpha) for alpha in part.alpha]
            axes.plot(places, part.value, color=style.MUTED, linewidth=1, zorder=1)
            for place, point in zip(places, part.itertuples(), strict=True):
                if point.alpha == 0:
                    axes.axhline(
                        point.value, color=style.colour("ntp"), linewidth=0.9, linestyle=style.DASHED, zorder=1
                    )
                bars = None if point.seeds == 1 else [(point.high - point.low) / 2]
                colour = style.colour(point.objective) if point.alpha in (0, 1) else style.INK
                look = {"color": colour, "marker": style.marker(point.objective), "markersize": 6}
                axes.errorbar(place, point.value, bars, **look, linestyle="none", elinewidth=1.2, capsize=2.5)
            axes.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
            axes.set_xlim(-0.4, len(alphas) - 0.6)
            axes.grid(axis="x", visible=False)
            axes.set_title(f"{name(arch)}: {_label(quantity)}")
            axes.set_ylabel(part.unit.iloc[0])
            if row == len(pairs) - 1:
                axes.set_xlabel("α (0: NTP)")
    count = int(rows.seeds.max())
    told = f"bars: {study.settings.confidence:.0%} t intervals over {count} seeds" if count > 1 else "one seed: no bars"
    named = [key for key in ("ntp", "prior") if key in set(rows.objective)]
    style.legend(figure, named, lines=[("level of NTP", style.DASHED)], note=told)
    style.title(figure, f"Ablation of α ({tokens(float(scale))} caption tokens)")
    return figure


def _quantities(rows: pd.DataFrame, items: pd.DataFrame) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """Quantity, kind, unit, and rows with one value for each objective and seed."""
    asked = rows[rows.benchmark != HELDOUT]
    columns = scores(asked, items)
    if columns:
        records, used = [], [score.benchmark for score in averaged(columns)]
        for objective, part in asked[asked.benchmark.isin(used)].groupby("objective"):
            place = {"objective": objective, "stage": part.stage.iloc[-1], "step": part.step.mean()}
            for kind, values in averages(part, columns).items():
                records += [place | {"kind": kind, "seed": seed, "value": value} for seed, value in values.items()]
        found = pd.DataFrame(records, columns=["kind", "objective", "stage", "step", "seed", "value"])
        for kind, (_, unit) in AVERAGES.items():
            if len(own := select(found, kind=kind)):
                yield kind, "average", unit, own
    for score in columns:
        own = select(asked, benchmark=score.benchmark, metric=score.metric)
        yield score.label, "score", own.unit.iloc[0], own
    benchmark, metric = INVENTED
    own = select(asked, benchmark=benchmark, metric=metric)
    # Of an arm whose captions mention no object in some seed there is no share of made-up ones.
    if len(own := own[own.groupby("objective").n_items.transform("min") > 0]):
        yield metric, "score", own.unit.iloc[0], own
    for metric in LOSSES:
        if len(own := select(rows, benchmark=HELDOUT, metric=metric)):
            yield metric, "loss", "nats/token", own


def _layout(cells: pd.DataFrame, columns: tuple[str, str, str], sign: bool) -> pd.DataFrame:
    rows = []
    for (arch, alpha, _), part in cells.groupby(["arch", "alpha", "objective"], sort=False):
        row = {"": name(arch), "α": f"{alpha:g}" + (" (NTP)" if alpha == 0 else "")}
        for cell in part.itertuples():
            digits = 3 if cell.kind == "loss" or cell.quantity == "corrected" else 1
            value, low, high = (getattr(cell, column) for column in columns)
            row[_label(cell.quantity)] = spread(value, low, high, digits, sign)
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def _steps(part: pd.DataFrame) -> str:
    """At which step the arms are compared."""
    told = []
    for stage, rows in part.groupby("stage"):
        steps = sorted({round(step) for step in rows.step})
        span = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]}–{steps[-1]}"
        told.append(f"{'tuned' if stage == 'tuned' else 'pre-trained'} to step {span}")
    return f"Compared: checkpoints {', '.join(told)}."


def _label(quantity: str) -> str:
    if quantity == INVENTED[1]:
        return "CHAIR_i up to NTP's and PRIOR's length (lower is better)"
    return LOSSES.get(quantity) or AVERAGES.get(quantity, (quantity, ""))[0]
