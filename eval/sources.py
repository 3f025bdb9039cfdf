"""What each benchmark's file is: made here, VLMEvalKit's own, or another one under its name."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from eval.benchmarks import is_official, maker
from eval.display import Display, number
from eval.official import provenance
from eval.results import guessing
from prior.config import Preset

COLUMNS = ["benchmark", "source", "answer", "rows", "md5", "official_md5"]


def sources(preset: Preset, folder: Path) -> pd.DataFrame:
    """The columns benchmark, source, answer, rows, md5 and official_md5, with a row for each benchmark of a preset.

    `source` is ``generated``, ``own`` (made by a rule of the user's), ``official``, or ``unofficial``: a file under an
    official name whose md5 is not that of VLMEvalKit's table, which lies in `folder` beside the benchmarks.
    """
    path = folder / "official.json"
    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rows = []
    for name, entry in preset.benchmarks.items():
        official = is_official(name, preset)
        found = provenance(folder / f"{name}.tsv", name, table if official else {})
        if not official and maker(name):
            found["source"] = "generated"
        rows.append({"benchmark": name, "answer": entry.answer} | found)
    return pd.DataFrame(rows, columns=COLUMNS)


def sources_table(asked: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """`sources` beside what guessing gives: the column `chance`, percent of questions, NaN where nothing is guessed."""
    return asked.assign(chance=[guessing(metrics, name) for name in asked.benchmark])


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
    return [Display("What was asked", pd.DataFrame(rows), note)] if rows else []
