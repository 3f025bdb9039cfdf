"""Held-out loss on image-related and on other tokens, NTP and PRIOR, with and without the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from eval import style
from eval.display import Display, name, seeds, spread, tokens
from eval.outcomes.dots import dot, objectives_of
from eval.results import HELDOUT, arms, by_seed, final, select
from eval.statistics import NOTHING, mean_interval, paired_difference
from eval.study import Missing, Study
from prior.config import Statistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOKENS = {"loss_relevant": "relevant", "loss_other": "other", "loss": "all"}
LOSS_LABEL = "held-out loss (nats/token)"


def table(study: Study) -> pd.DataFrame:
    """Held-out caption loss (nats/token) of every arm and scale, on relevant, other and all tokens.

    Columns: arch, objective, scale_tokens, picture, tokens, value, low, high, seeds, gain, gain_low, gain_high, where
    `gain` is the difference to NTP, paired by seed (negative: lower loss than NTP).
    """
    metrics, settings = study.compared, study.settings
    rows = select(final(metrics), benchmark=HELDOUT)
    if rows.empty:
        raise Missing("no loss on held-out captions was measured")
    records = []
    for metric, kind in TOKENS.items():
        for arch, objective in arms(metrics):
            for scale in sorted(set(rows.scale_tokens)):
                for picture in ("with", "without"):
                    where = {"arch": arch, "scale_tokens": scale, "picture": picture, "metric": metric}
                    values = by_seed(rows, objective=objective, **where)
                    if values.empty:
                        continue
                    mean, gain = mean_interval(values, settings.confidence), NOTHING
                    base = by_seed(rows, objective="ntp", **where)
                    if objective != "ntp" and len(base):
                        gain = paired_difference(values, base, settings.confidence)
                    key = {"arch": arch, "objective": objective, "scale_tokens": scale, "picture": picture}
                    value = {"value": mean.estimate, "low": mean.low, "high": mean.high, "seeds": mean.n}
                    more = {"gain": gain.estimate, "gain_low": gain.low, "gain_high": gain.high}
                    records.append(key | {"tokens": kind} | value | more)
    names = ["arch", "objective", "scale_tokens", "picture", "tokens", "value", "low", "high", "seeds"]
    return pd.DataFrame(records, columns=[*names, "gain", "gain_low", "gain_high"])


def show(table: pd.DataFrame) -> list[Display]:
    """Held-out loss with its picture, and what the picture is worth."""
    shown = []
    for picture, part in table.groupby("picture", sort=True):
        kinds = [kind for kind in ("relevant", "other", "all") if kind in set(part.tokens)]
        rows = []
        for (arch, scale, objective), arm in part.groupby(["arch", "scale_tokens", "objective"], sort=False):
            row = {"": name(str(arch)), "caption tokens": tokens(float(scale)), "objective": name(str(objective))}
            by = {entry.tokens: entry for entry in arm.itertuples()}
            row |= {f"{kind} tokens": spread(by[kind].value, by[kind].low, by[kind].high, 3) for kind in kinds}
            for kind in kinds:
                gain = spread(by[kind].gain, by[kind].gain_low, by[kind].gain_high, 3, sign=True)
                row[f"{kind}: minus NTP"] = gain
            rows.append((arch, scale, row))
        rows.sort(key=lambda entry: entry[:2])
        note = (
            f"nats per token, mean over {seeds(part)} ± half the width of its t interval; differences paired by seed."
        )
        if picture == "without":
            note += " The same models, asked without the picture: what is lost is what the picture told them."
        shown.append(
            Display(f"Held-out caption loss, {picture} the picture", pd.DataFrame([row for *_, row in rows]), note)
        )
    return shown


def draw(table: pd.DataFrame, study: Study) -> Figure:
    """Loss on relevant, other and all tokens at the largest scale, per objective, with and without the picture."""
    rows, settings = select(study.last, benchmark=HELDOUT), study.settings
    kinds = [metric for metric in TOKENS if metric in set(rows.metric)]
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
                        dot(axes, x, values, objective, settings, hollow=picture == "without")
            _note_gap(axes, place, rows, arch, metric, settings)
        axes.set_xticks(range(len(kinds)), [f"{TOKENS[metric]} tokens" for metric in kinds])
        axes.set_xlim(-0.55, len(kinds) - 0.45)
        axes.set_title(name(arch))
        axes.grid(axis="x", visible=False)
        if column == 0:
            axes.set_ylabel(LOSS_LABEL)
    if first is not None:
        first.set_ylim(0, first.get_ylim()[1] * 1.22)
        style.legend(figure, objectives_of([rows]), hollow="without the picture", note="numbers: PRIOR − NTP")
    scale = tokens(float(rows.scale_tokens.max()))
    subject = "Held-out loss on tokens the picture decides and on the others" if len(kinds) > 1 else "Held-out loss"
    style.title(figure, f"{subject} ({scale} caption tokens)")
    return figure


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
