"""What people read about hallucination: CHAIR's scores of free captions, as a table and against caption tokens."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import pandas as pd

from eval import style
from eval.chair import EQUAL
from eval.display import MINUS, Display, name, seeds, spread, tokens, who
from eval.results import arms, by_seed, final, select
from eval.statistics import NOTHING, Interval, mean_interval, paired_difference
from eval.study import Missing, Study
from prior.config import Statistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHAIR, POPE = "CHAIR", "POPE"
METRICS = ("chair_s", "chair_i", "recall", "words")
COLUMNS = {
    "chair_s": "CHAIR_s, % (lower is better)",
    "chair_i": "CHAIR_i, % (lower is better)",
    "recall": "recall, % (higher is better)",
    "words": "words",
    "f1": "POPE F1, %",
    "yes_rate": "POPE yes-rate, %",
}


def table(study: Study) -> pd.DataFrame:
    """CHAIR's scores at the largest scale as written and at equal length (`eval.chair`), and POPE's beside them.

    Columns: arch, objective, picture, scale_tokens, benchmark, metric, value, low, high, seeds, unit, gain, gain_low,
    gain_high, where `gain` is the difference to NTP, paired by seed (negative: lower than NTP). A share of nothing,
    such as CHAIR_i of captions that mention no object, is NaN.

    Raises
    ------
    Missing
        If no captions were asked for.
    """
    last, settings = study.last, study.settings
    if CHAIR not in set(last.benchmark):
        raise Missing("this preset has no CHAIR, for which models caption held-out pictures")
    asked = [*product([CHAIR], [*METRICS, *(metric + EQUAL for metric in METRICS)]), (POPE, "f1"), (POPE, "yes_rate")]
    records: list[dict[str, Any]] = []
    shown = product(("with", "without"), arms(select(last, benchmark=CHAIR)))
    for (picture, (arch, objective)), (benchmark, metric) in product(shown, asked):
        part = select(last, picture=picture, arch=arch, benchmark=benchmark, metric=metric)
        own = select(part, objective=objective)
        if own.empty:
            continue
        mean, gain = _mean(own, settings), NOTHING
        if objective != "ntp" and part.n_items.all():
            gain = paired_difference(by_seed(own), by_seed(part, objective="ntp"), settings.confidence)
        key = {"arch": arch, "objective": objective, "picture": picture, "scale_tokens": int(own.scale_tokens.iloc[0])}
        value = {"value": mean.estimate, "low": mean.low, "high": mean.high, "seeds": mean.n}
        more = {"unit": own.unit.iloc[0], "gain": gain.estimate, "gain_low": gain.low, "gain_high": gain.high}
        records.append(key | {"benchmark": benchmark, "metric": metric} | value | more)
    names = [
        "arch",
        "objective",
        "picture",
        "scale_tokens",
        "benchmark",
        "metric",
        "value",
        "low",
        "high",
        "seeds",
        "unit",
    ]
    return pd.DataFrame(records, columns=[*names, "gain", "gain_low", "gain_high"])


def show(table: pd.DataFrame) -> list[Display]:
    """Captions as they were written, and cut to equal length."""
    scale = tokens(float(table.scale_tokens.max()))
    note = (
        "CHAIR_s: captions that mention an object which is not in the picture. CHAIR_i: such mentions among all. "
        "Recall: objects of the pictures that are mentioned. Words: mean length of a caption. "
        f"Mean over {seeds(table)} ± half the width of its t interval; differences ({MINUS} NTP) paired by seed. "
        "Without picture: what the same model says when shown nothing, which is one caption for all pictures. Blank: a "
        "share of nothing, as where no object is mentioned."
    )
    beside = " POPE: the last checkpoints of the same runs." if POPE in set(table.benchmark) else ""
    equal = (
        "As above, but for each picture the captions of the objectives that stand side by side are read as far as the "
        "shortest of them goes: a longer caption has more room for both truth and invention."
    )
    written = table[~table.metric.str.endswith(EQUAL)]
    level = select(table, benchmark=CHAIR)
    level = level[level.metric.str.endswith(EQUAL)]
    level = level.assign(metric=level.metric.str.removesuffix(EQUAL))
    return [
        Display(f"Hallucination in free captions ({scale} caption tokens)", _cells(written), note + beside),
        Display(f"Hallucination in free captions of equal length ({scale} caption tokens)", _cells(level), equal),
    ]


def draw(table: pd.DataFrame, study: Study) -> Figure:
    """CHAIR_i and recall at equal length against caption tokens."""
    rows, settings = select(final(study.compared), benchmark=CHAIR, picture="with"), study.settings
    architectures = list(dict.fromkeys(arch for arch, _ in arms(rows)))
    labels = {"chair_i": "CHAIR_i (%), lower is better", "recall": "recall (%), higher is better"}
    drawn = style.figure(7.4, 2.7 * len(architectures) + 0.6)
    scales = sorted(set(rows.scale_tokens))
    for column, (metric, label) in enumerate(labels.items()):
        first: Axes | None = None
        for line, arch in enumerate(architectures):
            axes = drawn.add_subplot(len(architectures), 2, 2 * line + column + 1, sharex=first, sharey=first)
            first = first or axes
            part = select(rows, arch=arch, metric=metric + EQUAL)
            objectives = [objective for _, objective in arms(part)]
            for place, objective in enumerate(objectives):
                # Side by side, or one interval hides the other.
                aside = 1 + 0.06 * (place - (len(objectives) - 1) / 2)
                _curve(axes, select(part, objective=objective), objective, aside, settings)
            axes.set_xscale("log")
            axes.set_xticks(scales, [tokens(scale) for scale in scales])
            axes.minorticks_off()
            axes.set_title(f"{name(arch)}: {'made-up objects' if metric == 'chair_i' else 'objects found'}")
            axes.set_ylabel(label)
            if line == len(architectures) - 1:
                axes.set_xlabel("caption tokens")
        if first is not None:
            # Only now: a limit set earlier would cut what the later rows draw.
            first.set_ylim(bottom=0)
    style.legend(drawn, list(dict.fromkeys(objective for _, objective in arms(rows))))
    style.title(drawn, "Hallucination in free captions of equal length against caption tokens")
    return drawn


def _curve(axes: Axes, rows: pd.DataFrame, objective: str, aside: float, settings: Statistics) -> None:
    """One arm's means over seeds with their intervals; none where a seed's captions leave the share undefined."""
    means = {scale: _mean(part, settings) for scale, part in rows.groupby("scale_tokens")}
    half = [mean.half_width if mean.n > 1 else 0.0 for mean in means.values()]
    look = {"color": style.colour(objective), "marker": style.marker(objective), "markersize": 5, "capsize": 2.5}
    x, y = [scale * aside for scale in means], [mean.estimate for mean in means.values()]
    axes.errorbar(x, y, yerr=half, elinewidth=1.2, **look)


def _mean(rows: pd.DataFrame, settings: Statistics) -> Interval:
    return mean_interval(by_seed(rows), settings.confidence) if rows.n_items.all() else NOTHING


def _cells(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each arm, and below each but NTP's its difference to NTP."""
    rows = []
    for (arch, objective, picture), part in table.groupby(["arch", "objective", "picture"], sort=False):
        entries = list(part.itertuples())
        label = who(str(arch), str(objective), str(picture))
        values = {COLUMNS[row.metric]: spread(row.value, row.low, row.high, 1) for row in entries}
        rows.append({"": label} | values)
        if objective != "ntp" and picture == "with":
            gaps = {COLUMNS[row.metric]: spread(row.gain, row.gain_low, row.gain_high, 1, sign=True) for row in entries}
            rows.append({"": f"{label} {MINUS} NTP"} | gaps)
    return pd.DataFrame(rows).fillna("")
