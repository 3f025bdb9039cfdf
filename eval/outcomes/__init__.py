"""The results of a preset: one module for each, numbers of a study in, a table and a figure out.

The module ``eval.outcomes.<name>`` has

``table(study)``
    its numbers, tidy: a row for each arm and quantity, with intervals. Raises `Missing` where a preset has none.
``show(table)``
    how people see them, as a list of `Display`.
``draw(table, study)``
    the figure, if it has one.

What stands above it on pages is ``workflow/report/<name>.rst``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.stored import FITS, ITEMS, METRICS, QUALITY, REPORTED, TABLES

if TYPE_CHECKING:
    from eval.study import Study


@dataclass(frozen=True)
class Heading:
    """What a result is called, the category it stands in, the files it is made from, and whether it has a figure."""

    title: str
    category: str
    read: tuple[str, ...]
    figure: bool = True


OUTCOMES = {
    "main": Heading("Benchmark scores", "Benchmarks", (METRICS, ITEMS, REPORTED)),
    "trajectory": Heading("Trajectories", "Training", (METRICS, ITEMS, REPORTED)),
    "scaling": Heading("Scaling", "Scaling", (METRICS, FITS)),
    "alpha": Heading("Ablation of α", "Benchmarks", (METRICS, ITEMS)),
    "losses": Heading("Loss on image-related and other tokens", "Training", (METRICS,)),
    "stability": Heading("Stability", "Training", (METRICS, ITEMS, TABLES["training"], REPORTED)),
    "scores": Heading("Scores against relevance", "Scores", (TABLES["words"], TABLES["tokens"])),
    "mutual": Heading("Mutual information", "Scores", (TABLES["mutual"],)),
    "hallucination": Heading("Hallucination", "Benchmarks", (METRICS,)),
    "cost": Heading("Cost", "Cost", (TABLES["costs"], TABLES["training"])),
    "accuracy": Heading("Right answers against guessing", "Benchmarks", (METRICS, ITEMS), figure=False),
    "benchmarks": Heading("What was asked", "Benchmarks", (METRICS, TABLES["benchmarks"]), figure=False),
    "words": Heading("Words by importance score", "Scores", (TABLES["words"], QUALITY), figure=False),
}
TABLE_ENDINGS, FIGURE_ENDINGS = ("csv", "md", "tex", "html"), ("pdf", "png")


def write_outcomes(study: Study, tables: Path, figures: Path, names: Iterable[str] = tuple(OUTCOMES)) -> None:
    """Write ``<name>.csv``, ``.md``, ``.tex`` and ``.html`` into `tables`, ``<name>.pdf`` and ``.png`` into `figures`.

    A result that a preset cannot give becomes a table and a figure that say what is missing. The same numbers give the
    same bytes.
    """
    from tqdm import tqdm

    from eval import display, style
    from eval.study import Missing
    from prior.files import whole, write_text

    for name in tqdm(list(names), unit="result"):
        module = importlib.import_module(f"{__name__}.{name}")
        try:
            table = module.table(study)
            shown = module.show(table)
        except Missing as missing:
            table, shown = _nothing(name, missing)
        with whole(tables / f"{name}.csv") as temporary:
            # Ten digits: beyond the last place where machines agree there is nothing to read.
            table.to_csv(temporary, index=False, float_format="%.10g", lineterminator="\n")
        for ending, write in (("md", display.markdown), ("tex", display.latex), ("html", display.html)):
            write_text(tables / f"{name}.{ending}", write(shown))
        if not OUTCOMES[name].figure:
            continue
        with style.context():
            try:
                figure = style.message(_why(table)) if "missing" in table else module.draw(table, study)
            except Missing as missing:
                figure = style.message(f"{OUTCOMES[name].title}: {missing}")
            for ending in FIGURE_ENDINGS:
                with whole(figures / f"{name}.{ending}") as temporary:
                    figure.savefig(temporary, format=ending, metadata=style.METADATA[ending])


def _nothing(name: str, missing: Exception) -> tuple[Any, Any]:
    """A table that only says why it is empty, and how it is shown."""
    import pandas as pd

    from eval.display import Display

    title = OUTCOMES[name].title
    table = pd.DataFrame({"missing": [f"{title}: {missing}"]})
    return table, [Display(title, pd.DataFrame({"not given": [str(missing)]}))]


def _why(table: Any) -> str:
    return str(table.missing.iloc[0])
