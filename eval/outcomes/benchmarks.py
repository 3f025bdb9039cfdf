"""What was asked: where each benchmark's questions come from, and what guessing gives."""

from __future__ import annotations

import pandas as pd

from eval.display import Display, number
from eval.results import guessing
from eval.study import Study


def table(study: Study) -> pd.DataFrame:
    """The rows of ``benchmarks.csv`` beside what guessing gives: `chance`, percent; NaN where nothing is guessed."""
    asked = study.table("benchmarks")
    return asked.assign(chance=[guessing(study.metrics, name) for name in asked.benchmark])


def show(table: pd.DataFrame) -> list[Display]:
    """The benchmarks by their names; a file that only goes by an official name is named as such."""
    rows = []
    for row in table.itertuples():
        source = {"unofficial": "UNOFFICIAL file under an official name", "own": "a rule of this checkout"}
        rows.append(
            {
                "": row.benchmark,
                "where from": source.get(row.source, row.source),
                "rows": f"{row.rows:,}",
                "guessing, %": number(row.chance, 1),
                "answered by": {"generate": "a reply", "likelihood": "the likeliest option"}.get(
                    row.answer, "a caption"
                ),
                "md5": row.md5,
            }
        )
    note = (
        "Generated: asked about pictures of the generated world, in the manner of the benchmark of that name; these "
        "scores cannot be compared with published ones. Official: the md5 is that of VLMEvalKit's own table."
    )
    return [Display("What was asked", pd.DataFrame(rows), note)]
