"""The text of every question as VLMEvalKit's own `build_prompt` puts it."""

from __future__ import annotations

import csv
import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd

from eval import tsv
from eval.vlmevalkit.kit import dataset, fresh_folder, kit, missing
from prior.errors import UserError
from prior.files import write_text


def prompts(frame: pd.DataFrame, name: str) -> list[dict[str, str]]:
    """``index`` and ``text`` of every row of the benchmark `name`; its pictures are neither read nor mentioned."""
    kind = tsv.kind_of(name, list(frame.columns))
    modules = kit()
    with fresh_folder(modules) as folder:
        # Without the column `image` it passes paths on as they are and opens nothing.
        asked = dataset(modules, kind, frame.drop(columns="image", errors="ignore").assign(image_path="none"), folder)
        return [
            {"index": str(asked.data.iloc[row]["index"]), "text": part["value"]}
            for row in range(len(asked))
            for part in asked.build_prompt(row)
            if part["type"] == "text"
        ]


def export(path: Path, out: Path, cache: Path, answer: str, official: bool = False) -> None:
    """Check a benchmark, pictures and all, and write its prompts as JSON lines: ``index`` and ``text``.

    Importing VLMEvalKit takes seconds, so `cache` keeps the prompts by what they depend on: the benchmark's words, its
    name, and VLMEvalKit's version. Where models choose or caption, nothing is asked.

    Raises
    ------
    UserError
        If the file is no benchmark, or cannot be answered in the way that `answer` names.
    """
    frame = tsv.validate(path, official=official)
    if answer == "likelihood" and "A" not in frame:
        raise UserError(f"{path}: `answer: likelihood` ranks options, but there are none; use `answer: generate`")
    if (answer == "caption") != (tsv.kind_of(path.stem, list(frame.columns)) == "caption"):
        raise UserError(
            f"{path}: `answer: caption` is for tables of 'objects' without a 'question', and only for these"
        )
    if answer != "generate":
        write_text(out, "".join(json.dumps({"index": index, "text": ""}) + "\n" for index in frame["index"]))
        return
    try:
        release = version("ms-vlmeval")
    except PackageNotFoundError:
        raise missing("vlmeval") from None
    words = frame.drop(columns="image").to_csv(sep="\t", index=False, quoting=csv.QUOTE_ALL)
    key = json.dumps([release, path.stem, words]).encode()
    kept = cache / f"{hashlib.sha256(key).hexdigest()}.jsonl"
    if not kept.is_file():
        write_text(kept, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in prompts(frame, path.stem)))
    write_text(out, kept.read_text(encoding="utf-8"))
