"""How figures look: a colour-blind-safe palette (Okabe and Ito, 2008), type sizes, legends, deterministic files."""

from __future__ import annotations

import textwrap
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

from eval.display import name

DASHED: Any = (0, (4, 2))
DOTTED: Any = (0, (1.5, 1))
INK, MUTED, FAINT = "#222222", "#6b6b6b", "#e4e4e4"
OBJECTIVES = {"ntp": "#0072B2", "prior": "#D55E00"}
OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TOKENS = {"relevant": "#D55E00", "other": "#0072B2", "all": "#009E73"}
# No dates and no versions: the same numbers give the same bytes.
METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}
RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "normal",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9a9a9a",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.5,
    "figure.titlesize": 11.5,
    "figure.titleweight": "bold",
    "savefig.dpi": 150,
    "pdf.fonttype": 42,
    "svg.hashsalt": "prior",
}


def context() -> AbstractContextManager[None]:
    """The settings under which figures are drawn and written."""
    import matplotlib

    return matplotlib.rc_context(RC)


def figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, outside pyplot's global state."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    made.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    return made


def message(text: str) -> Figure:
    """A figure that says in words why there is nothing to draw."""
    made = figure(6.6, 1.4)
    made.text(0.5, 0.5, "\n".join(textwrap.wrap(text, 72)), ha="center", va="center", color=MUTED)
    return made


def title(made: Figure, text: str) -> None:
    """A title over all panels, broken into lines that fit the width."""
    made.suptitle("\n".join(textwrap.wrap(text, int(10 * made.get_figwidth()))))


def colour(objective: str) -> str:
    if objective in OBJECTIVES:
        return OBJECTIVES[objective]
    return OTHERS[sum(objective.encode()) % len(OTHERS)]


def marker(objective: str) -> str:
    """Shape as well as colour tells objectives apart."""
    return {"ntp": "o", "prior": "D"}.get(objective, "s")


def log_axes(axes: Axes, ticks: list[int], labels: list[str]) -> None:
    """Log-log axes whose x ticks are the data scales."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(ticks, labels)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    low, high = axes.get_ylim()
    # The coarsest round steps that leave at least three ticks; a span too small for any is split evenly.
    for steps in (
        (1,),
        (1, 2, 5),
        (1, 1.5, 2, 3, 5, 7),
        (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9),
    ):
        if sum(low <= step * 10.0**power <= high for power in range(-6, 7) for step in steps) >= 3:
            axes.yaxis.set_major_locator(LogLocator(subs=steps))
            break
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def note(axes: Axes, line: int, text: str, shade: str) -> None:
    """A coloured line between title and panel; line 0 is nearest the panel."""
    offset = {"xytext": (0, 4 + 11 * line), "textcoords": "offset points"}
    axes.annotate(text, (0, 1), xycoords="axes fraction", **offset, fontsize=8, color=shade)


def legend(
    made: Figure,
    objectives: list[str],
    hollow: str = "",
    lines: list[tuple[str, Any]] | None = None,
    small: str = "",
    note: str = "",
) -> None:
    """One legend below all panels: objectives, then what hollow markers, lines and small dots mean."""
    from matplotlib.lines import Line2D

    joined = "none" if hollow or lines else "-"
    handles = [
        Line2D([], [], color=colour(key), marker=marker(key), markersize=5.5, linestyle=joined, label=name(key))
        for key in objectives
    ]
    if hollow:
        handles.append(Line2D([], [], color=INK, marker="o", markerfacecolor="white", linestyle="none", label=hollow))
    handles += [Line2D([], [], color=MUTED, linestyle=line, linewidth=1.4, label=label) for label, line in lines or []]
    if small:
        handles.append(Line2D([], [], color=MUTED, marker="o", markersize=3, linestyle="none", label=small))
    if note:
        handles.append(Line2D([], [], linestyle="none", label=note))
    made.legend(handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.5, columnspacing=1.4)
