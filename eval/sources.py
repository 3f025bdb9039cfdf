"""What each benchmark's file is: made here, VLMEvalKit's own, or another one under its name."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from eval.benchmarks import is_official, maker
from eval.official import provenance
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
