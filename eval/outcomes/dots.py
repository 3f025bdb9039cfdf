"""What several figures draw alike: one arm as a dot with its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from eval import style
from eval.results import arms
from eval.statistics import mean_interval
from prior.config import Statistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def dot(
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


def objectives_of(tables: list[pd.DataFrame]) -> list[str]:
    """Objectives in the order of legends."""
    return list(dict.fromkeys(objective for table in tables for _, objective in arms(table)))
