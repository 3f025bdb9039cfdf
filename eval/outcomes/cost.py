"""What a preset has cost, stage by stage: tokens, FLOPs, time; and what PRIOR costs beside its trainings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eval import style
from eval.display import Display, name, number, seeds, spread, tokens
from eval.results import RUN, by_seed, select
from eval.statistics import mean_interval
from eval.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = [
    *("kind", "stage", "arch", "objective", "scale_tokens", "quantity"),
    *("value", "low", "high", "seeds", "unit", "note"),
]
UNITS = {
    **{"jobs": "jobs", "runs": "runs", "tokens": "tokens", "positions": "positions", "flops": "FLOPs"},
    **{"seconds": "s", "cpu_seconds": "s", "gpu_seconds": "s", "max_rss_mb": "MB"},
}
STAGES = {
    **{"corpus": "corpus", "tokenizer": "tokenizer", "tokens": "tokenising", "llm": "base LLM"},
    **{"vision": "vision tower", "reference": "reference LLM", "scores": "scores"},
    **{"heldout_scores": "scores, held-out", "pretrain": "pre-training"},
    **{"tune": "tuning", "predict": "answers", "predict_step": "answers on the way", "score": "scoring of answers"},
}
# What PRIOR needs and NTP does not.
EXTRA = ("reference", "scores")
# What is added up, and of which totals shares are taken.
SUMS, SHARES = [key for key in UNITS if key != "max_rss_mb"], ("flops", "cpu_seconds")


def table(study: Study) -> pd.DataFrame:
    """Costs of a preset, tidy.

    Columns: kind, stage, arch, objective, scale_tokens, quantity, value, low, high, seeds, unit, note. `kind` is

    ``stage``
        what a stage took, `quantity` being a column of ``costs.csv`` (`cluster.spent`) or ``gpu_seconds``; sums over
        its rows, of memory the largest. A sum of which a part is missing is missing, with the reason in `note`,
    ``share``
        of all stages' FLOPs and processor time, percent; missing where one of them is,
    ``arm``
        the same as ``stage`` for one architecture, objective and scale of a training,
    ``extra``
        reference LLM and scores, in percent of one pre-training under PRIOR (`scale_tokens` its scale), or of all
        pre-trainings under PRIOR with any α together (no `arch`, no scale),
    ``step``
        time of a step, its median over a run, as a ratio to NTP's of the same seed: geometric mean, t interval of the
        logarithm.

    Raises
    ------
    Missing
        If there is no ``costs.csv``.
    """
    costs = study.table("costs")
    costs = costs.assign(gpu_seconds=costs.gpus * costs.seconds)
    text = ["arch", "objective", "remark"]
    costs[text] = costs[text].astype(object).where(costs[text].notna(), "")
    records = [*_stages(costs), *_arms(costs), *_extra(costs, study), *_steps(study)]
    return pd.DataFrame(records, columns=COLUMNS)


def show(table: pd.DataFrame) -> list[Display]:
    """Costs per stage, per pre-training, what PRIOR adds, and the time of its steps."""
    stages = table[table.kind == "stage"]
    share = table[table.kind == "share"].set_index(["stage", "quantity"]).value
    rows = []
    for stage, part in stages.groupby("stage", sort=False):
        rows.append({"": STAGES.get(str(stage), str(stage))} | _cells(part))
        for quantity, label in zip(SHARES, ("FLOPs, %", "CPU time, %"), strict=True):
            rows[-1][label] = number(share.get((stage, quantity), np.nan), 1)
    gone = stages[stages.note != ""].drop_duplicates(["stage", "note"])
    missing = [f"{STAGES.get(row.stage, row.stage)}: {row.note}" for row in gone.itertuples()]
    note = (
        "Tokens: label tokens trained on or scored, over all seeds. Positions: what an LLM computed for these, "
        "pictures included. FLOPs: by the formulas of the plan, with captions as long as the corpus's; answers "
        "count at their longest. Times and memory: Snakemake's measurements, summed over jobs, the most of one for "
        "memory; of a job that was interrupted they hold the last part alone. Wall time is of jobs that shared a "
        "machine. Fetching, counting and drawing are left out. Empty: not measured, or not known."
    )
    if missing:
        note += f" Missing: {'; '.join(missing)}."
    shown = [Display("Cost per stage", pd.DataFrame(rows).fillna(""), note)]
    arms = select(table, kind="arm", stage="pretrain")
    if len(arms):
        rows = [
            {"": name(str(arch)), "objective": name(str(objective)), "caption tokens": tokens(float(scale))}
            | _cells(part)
            for (arch, objective, scale), part in arms.groupby(["arch", "objective", "scale_tokens"], sort=False)
        ]
        shown.append(Display("Cost of pre-training", pd.DataFrame(rows).fillna(""), "Of all seeds together."))
    if len(extra := table[table.kind == "extra"]):
        shown.append(_shown_extra(extra))
    if len(step := table[table.kind == "step"]):
        rows = [
            {
                "": name(row.arch),
                "caption tokens": tokens(float(row.scale_tokens)),
                "objective": name(row.objective),
                "time of a step over NTP's": spread(row.value, row.low, row.high, 3, bounds=True),
            }
            for row in step.itertuples()
        ]
        note = (
            f"Median step of a run over that of NTP with the same seed; geometric mean over {seeds(step)}, t interval "
            "of the logarithm. The runs shared a machine with others: what else ran at the time is part of the noise."
        )
        shown.append(Display("Time of a step", pd.DataFrame(rows), note))
    return shown


def draw(table: pd.DataFrame, study: Study) -> Figure:
    """FLOPs and processor time of every stage as bars on log axes, those of PRIOR alone in its colour."""
    stages = table[table.kind == "stage"]
    share = table[table.kind == "share"].set_index(["stage", "quantity"]).value
    order = list(dict.fromkeys(stages.stage))
    figure = style.figure(9.6, 0.3 * len(order) + 1.3)
    first: Axes | None = None
    for column, (quantity, label) in enumerate((("flops", "FLOPs"), ("cpu_seconds", "processor time (s)"))):
        axes = figure.add_subplot(1, 2, column + 1, sharey=first)
        values = select(stages, quantity=quantity).set_index("stage").value
        known = [stage for stage in order if np.isfinite(values.get(stage, np.nan))]
        colours = [style.colour("prior") if stage in EXTRA else style.MUTED for stage in known]
        axes.barh([order.index(stage) for stage in known], values[known], color=colours, height=0.66)
        for stage in known:
            part = share.get((stage, quantity), np.nan)
            if np.isfinite(part):
                text = f"{part:.1f}%" if part >= 0.1 else "<0.1%"
                offset = {"xytext": (3, 0), "textcoords": "offset points"}
                place = values[stage], order.index(stage)
                axes.annotate(text, place, **offset, va="center", fontsize=8, color=style.MUTED)
        if known:
            axes.set_xscale("log")
            low, high = values[known].min(), values[known].max()
            axes.set_xlim(10 ** np.floor(np.log10(low) - 0.3), high * (high / low) ** 0.14 * 2)
        for stage in (stage for stage in order if stage not in known):
            why = "no model" if quantity == "flops" else "not measured"
            # In the axes' own width: without a value there is no place on the scale.
            axes.text(0.01, order.index(stage), why, transform=axes.get_yaxis_transform(), va="center", fontsize=7.5,
                      color=style.MUTED)  # fmt: skip
        axes.set_xlabel(label)
        axes.grid(axis="y", visible=False)
        if first is None:
            axes.set_yticks(range(len(order)), [STAGES.get(stage, stage) for stage in order])
            axes.set_ylim(len(order) - 0.4, -0.6)
            first = axes
        else:
            axes.tick_params(axis="y", labelleft=False)
    _legend(figure)
    style.title(figure, "Cost of every stage (logarithmic; numbers: share of all)")
    return figure


def _legend(figure: Figure) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(color=style.colour("prior"), label="needed by PRIOR alone"),
        Patch(color=style.MUTED, label="needed by every objective, or by the measuring"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)


def _total(part: pd.DataFrame) -> dict[str, float]:
    """Sums, and the most memory; NaN where a row has none."""
    found = {key: float(part[key].sum(skipna=False)) for key in SUMS}
    return found | {"max_rss_mb": float(part.max_rss_mb.max(skipna=False))}


def _stages(costs: pd.DataFrame) -> Iterator[dict[str, Any]]:
    totals = {}
    for stage, part in costs.groupby("stage", sort=False):
        totals[stage] = _total(part)
        note = "; ".join(_why(part))
        for quantity, value in totals[stage].items():
            measured = quantity in ("seconds", "cpu_seconds", "max_rss_mb")
            key = {"kind": "stage", "stage": stage, "arch": "", "objective": "", "quantity": quantity}
            yield key | {"value": value, "unit": UNITS[quantity], "note": note if measured else ""}
    for quantity in SHARES:
        values = pd.Series({stage: found[quantity] for stage, found in totals.items()})
        # A stage without a model has no FLOPs; one without a measurement makes shares of the others unknown.
        whole = values.sum() if quantity == "flops" else values.sum(skipna=False)
        for stage, value in values.items():
            key = {"kind": "share", "stage": stage, "arch": "", "objective": "", "quantity": quantity, "note": ""}
            yield key | {"value": 100 * value / whole, "unit": "percent"}


def _arms(costs: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for row in costs[costs.arch != ""].itertuples():
        key = {"kind": "arm", "stage": row.stage, "arch": row.arch, "objective": row.objective}
        key |= {"scale_tokens": row.scale_tokens}
        for quantity, unit in UNITS.items():
            note = row.remark if quantity in ("seconds", "cpu_seconds", "max_rss_mb") else ""
            yield key | {"quantity": quantity, "value": float(getattr(row, quantity)), "unit": unit, "note": note}


def _extra(costs: pd.DataFrame, study: Study) -> Iterator[dict[str, Any]]:
    """Reference LLM and scores in percent of trainings under PRIOR."""
    weighted = [objective for objective, alpha in study.alphas.items() if alpha > 0]
    trained = costs[(costs.stage == "pretrain") & costs.objective.isin(weighted)]
    added = costs[costs.stage.isin(EXTRA)]
    if trained.empty or added.empty:
        return
    for quantity in SHARES:
        more, key = added[quantity].sum(skipna=False), {"kind": "extra", "stage": "+".join(EXTRA), "unit": "percent"}
        key |= {"quantity": quantity, "note": ""}
        for row in trained[trained.objective == "prior"].itertuples():
            place = {"arch": row.arch, "objective": row.objective, "scale_tokens": row.scale_tokens}
            yield key | place | {"value": 100 * more / (getattr(row, quantity) / row.runs)}
        yield key | {"arch": "", "objective": "", "value": 100 * more / trained[quantity].sum(skipna=False)}


def _steps(study: Study) -> Iterator[dict[str, Any]]:
    """Time of a step over NTP's, paired by seed."""
    logs = study.stored.get("training")
    if logs is None or logs.empty:
        return
    value = np.log(logs.groupby(RUN).step_seconds.median().where(lambda seconds: seconds > 0))
    rows = value.rename("value").reset_index()
    for (arch, scale, objective), part in rows.groupby(["arch", "scale_tokens", "objective"]):
        base = by_seed(rows, arch=arch, scale_tokens=scale, objective="ntp")
        gap = (by_seed(part) - base).dropna()
        if objective == "ntp" or len(gap) < len(part):
            continue
        mean = mean_interval(gap, study.settings.confidence)
        key = {"kind": "step", "stage": "pretrain", "arch": arch, "objective": objective, "scale_tokens": scale}
        key |= {"quantity": "step_seconds", "unit": "ratio", "note": ""}
        bounds = {"value": mean.estimate, "low": mean.low, "high": mean.high}
        yield key | {key: float(np.exp(value)) for key, value in bounds.items()} | {"seeds": mean.n}


def _shown_extra(extra: pd.DataFrame) -> Display:
    rows: list[dict[str, str]] = []
    for (arch, scale), part in extra.groupby(["arch", "scale_tokens"], dropna=False):
        values = part.set_index("quantity").value
        what = f"one pre-training of {name(str(arch))}" if arch else "all pre-trainings under PRIOR, every α"
        row = {"in percent of": what, "caption tokens": tokens(float(scale)) if arch else "all"}
        rows.append(row | {"FLOPs": number(values["flops"], 1), "CPU time": number(values["cpu_seconds"], 1)})
    # All of them come last.
    rows.sort(key=lambda row: row["caption tokens"] == "all")
    note = (
        "Reference LLM and scores are made once for a corpus, of all its captions, and serve every training on it, "
        "however many captions that takes; who trains a single model pays them in full."
    )
    return Display("What PRIOR costs beside its pre-training", pd.DataFrame(rows), note)


def _cells(part: pd.DataFrame) -> dict[str, str]:
    """One row of a table of costs."""
    values = part.set_index("quantity").value
    count = {key: "" if pd.isna(values[key]) else f"{values[key]:.0f}" for key in ("jobs", "runs")}
    large = {key: "" if pd.isna(values[key]) else tokens(values[key]) for key in ("tokens", "positions")}
    flops = "" if pd.isna(values["flops"]) else f"{values['flops']:.2e}".replace("e+", "e")
    shown = count | large | {"FLOPs": flops, "wall time": _time(values["seconds"])}
    shown |= {"CPU time": _time(values["cpu_seconds"])}
    if values["gpu_seconds"] > 0:
        shown["GPU time"] = _time(values["gpu_seconds"])
    return shown | {"memory, MB": number(values["max_rss_mb"], 0)}


def _time(seconds: float) -> str:
    """Seconds as people say them."""
    if not np.isfinite(seconds):
        return ""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _why(part: pd.DataFrame) -> list[str]:
    """The remarks of a stage, each with how many rows it is about."""
    return [
        f"{remark} ({count}×)" if count > 1 else remark
        for remark, count in part[part.remark != ""].remark.value_counts(sort=False).items()
    ]
