"""Benchmark TSVs in VLMEvalKit's formats: reading, checking, and writing predictions beside them."""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import pandas as pd
from pandas._libs.parsers import STR_NA_VALUES

from eval.results import PERCEPTION, REASONING
from prior.errors import UserError
from prior.files import whole

Kind = Literal["mme", "pope", "yes/no", "circular", "choice", "caption"]

# VLMEvalKit reads a picture of this many characters or fewer as the index of the row that holds the picture.
LONGEST_REFERENCE = 64
# MMBench asks a question again with its options rotated: the index of a rotation is that of the question + k * 10^6.
ROTATION = 1_000_000

_COLUMNS: dict[Kind, list[str]] = {
    "mme": ["question", "answer", "category", "image_path"],
    "pope": ["question", "answer", "category"],
    "yes/no": ["question", "answer"],
    "circular": ["question", "answer", "A", "B"],
    "choice": ["question", "answer", "A", "B"],
    "caption": [],
}


def kind_of(name: str, columns: list[str]) -> Kind:
    """How a benchmark is scored, by its name and its columns.

    One with options A, B, … is multiple choice (circular if its name contains MMBench), one that asks nothing and lists
    the `objects` of its pictures wants captions, every other one is yes/no. None of one's own needs an entry here.
    """
    if "objects" in columns and "question" not in columns:
        return "caption"
    if "A" in columns:
        return "circular" if "mmbench" in name.lower() else "choice"
    return "mme" if "MME" in name else "pope" if "POPE" in name else "yes/no"


def options(row: Mapping[str, str] | pd.Series) -> dict[str, str]:
    """Letter -> text of the options that VLMEvalKit sees in a row: to its plain `pandas.read_csv` ``None`` is blank."""
    return {
        letter: row[letter] for letter in string.ascii_uppercase if letter in row and row[letter] not in STR_NA_VALUES
    }


def groups(frame: pd.DataFrame, kind: Kind) -> pd.Series:
    """The rows that stand or fall together, by a string per row.

    Rotations of a question (MMBench) are one group; elsewhere questions about the same picture are, if the benchmark
    names its pictures in the column ``image_path``; otherwise each row is its own.
    """
    if kind == "circular":
        return frame["g_index"] if "g_index" in frame else frame["index"].map(lambda index: str(int(index) % ROTATION))
    return frame["image_path"] if "image_path" in frame else frame["index"]


def read_benchmark(path: str | Path, pictures: bool = True) -> pd.DataFrame:
    """Read a benchmark or a prediction file as written: every column is text, ``None`` is a word, blank is ``""``.

    A picture that is given as the index of another row is replaced by that row's. Nothing else is checked; see
    `validate`.

    Parameters
    ----------
    pictures
        False leaves the column ``image`` out, which is most of the file.

    Raises
    ------
    UserError
        If the file is missing, empty, or not a table.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; make the benchmark or its predictions first")
    try:
        # Piece by piece, which takes half the memory: with its pictures an official benchmark has gigabytes.
        pieces = pd.read_csv(
            path,
            sep="\t",
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            usecols=lambda c: pictures or c != "image",
            chunksize=512,
        )
        frame = pd.concat(pieces)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        reason = str(error).strip().replace("\n", " ")
        raise UserError(f"{path}: not a table of tab-separated UTF-8 text ({reason}); write it again") from None
    if not isinstance(frame.index, pd.RangeIndex):
        raise UserError(f"{path}: rows have more cells than the header; quote cells that hold tabs")
    if "image" in frame and "index" in frame:
        short = frame["image"].str.len() <= LONGEST_REFERENCE
        if short.any():
            holding = frame["index"].isin(set(frame.loc[short, "image"]))
            held = dict(zip(frame.loc[holding, "index"], frame.loc[holding, "image"], strict=True))
            frame.loc[short, "image"] = [held.get(image, image) for image in frame.loc[short, "image"]]
    return frame


def write_predictions(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a benchmark's rows with their column ``prediction``, leaving the pictures out.

    Raises
    ------
    ValueError
        If there is no column ``prediction``.
    """
    if "prediction" not in frame:
        raise ValueError("the frame has no column 'prediction'")
    frame = frame.drop(columns="image", errors="ignore")
    with whole(path) as temporary:
        frame.to_csv(temporary, sep="\t", index=False, encoding="utf-8", quoting=csv.QUOTE_ALL)


def validate(path: str | Path, pictures: bool = True, official: bool = False) -> pd.DataFrame:
    """Check a benchmark before anything is asked of a model, and return it as `read_benchmark` does.

    Parameters
    ----------
    pictures
        False leaves the pictures unread and unchecked.
    official
        True lets cells be that VLMEvalKit reads otherwise than they are written: in a file that is not ours to reword,
        that reading is part of every published score.

    Raises
    ------
    UserError
        Naming the file, the row (its line number is not used: cells may hold newlines) and the remedy.
    """
    path = Path(path)
    frame = read_benchmark(path, pictures)
    for problem in _problems(path, frame, pictures, official):
        raise UserError(f"{path}: {problem}")
    return frame


def _problems(path: Path, frame: pd.DataFrame, pictures: bool, official: bool) -> Iterator[str]:
    kind = kind_of(path.stem, list(frame.columns))
    missing = [column for column in ["index", *_COLUMNS[kind]] if column not in frame]
    if pictures and "image" not in frame:
        missing.append("image")
    if missing:
        yield f"lacks the column '{missing[0]}'; add it (have: {', '.join(frame.columns)})"
        return
    if "prediction" in frame:
        yield "has a column 'prediction', which is where answers go; remove it"
    if frame.empty:
        yield "has no rows; add questions"
        return
    yield from _bad_indices(frame)
    for row in frame.drop(columns="image", errors="ignore").to_dict("records"):
        yield from (f"index {row['index']}: {problem}" for problem in _bad_cells(row, kind))
    if not official and kind != "caption":
        yield from _changed_by_reading(path, frame)
    yield from _bad_groups(frame, kind)
    if "image" in frame:
        yield from _bad_pictures(frame)
        if "image_path" in frame and not official:
            yield from _shared_paths(frame)


def _bad_indices(frame: pd.DataFrame) -> Iterator[str]:
    seen: set[int] = set()
    for row, index in enumerate(frame["index"], start=1):
        if not (index.isascii() and index.isdigit()):
            yield f"row {row}: the index '{index}' is not a whole number; number the rows"
        elif int(index) in seen:
            yield f"row {row}: the index {index} occurs twice; give every row its own"
        else:
            seen.add(int(index))


def _bad_cells(row: Mapping[str, str], kind: Kind) -> Iterator[str]:
    if kind == "caption":
        try:
            objects = json.loads(row["objects"])
        except ValueError:
            objects = None
        if not isinstance(objects, list) or not all(isinstance(name, str) for name in objects):
            yield f"the objects '{row['objects']}' are no JSON list of names; write one, such as [\"cup\"]"
        return
    # As written: an answer that only VLMEvalKit's reading puts out of reach is no mistake in an official file.
    letters = [letter for letter in string.ascii_uppercase if row.get(letter)]
    allowed = letters if kind in ("circular", "choice") else ["Yes", "No"]
    if "Z" in letters and kind in ("circular", "choice"):
        yield "an option Z, which is VLMEvalKit's word for no answer; ask with fewer options"
    if len(allowed) < 2:
        yield "fewer than two options; fill at least A and B"
    if row["answer"] not in allowed:
        yield f"the answer '{row['answer']}' is none of {', '.join(allowed)}; write one of these"
    for column in _COLUMNS[kind]:
        if column in ("question", "category", "image_path") and not row[column].strip():
            yield f"an empty '{column}'; fill it"
    if kind == "pope" and not all(name and name != "Overall" for name in row["category"].split(",")):
        yield f"the category '{row['category']}': a split has a name, and not that of the sum, Overall; write another"
    if Path(row.get("image_path", "")).is_absolute() or ".." in Path(row.get("image_path", "")).parts:
        yield f"the image_path '{row['image_path']}' leads elsewhere; write a path inside the benchmark"
    if kind == "mme" and row["category"] not in PERCEPTION | REASONING:
        known = ", ".join(sorted(PERCEPTION | REASONING))
        yield f"MME has no category '{row['category']}' and would leave the row out of its sums; use one of {known}"


def _changed_by_reading(path: Path, frame: pd.DataFrame) -> Iterator[str]:
    """Cells that VLMEvalKit's plain `pandas.read_csv` takes for something else: ``None``, ``NA``, ``007``."""
    read = pd.read_csv(path, sep="\t", usecols=[column for column in frame if column != "image"], low_memory=False)
    for column in read:
        as_read = ["" if pd.isna(value) else str(value) for value in read[column]]
        for index, ours, theirs in zip(frame["index"], frame[column], as_read, strict=True):
            if ours != theirs:
                what = f"'{theirs}'" if theirs else "an empty cell"
                yield f"index {index}, {column}: VLMEvalKit reads '{ours}' as {what}; word it otherwise"


def _bad_groups(frame: pd.DataFrame, kind: Kind) -> Iterator[str]:
    if kind == "mme":
        for (category, image), rows in frame.groupby(["category", "image_path"], sort=False):
            if len(rows) != 2:
                index = rows["index"].iloc[0]
                yield (
                    f"index {index}: the picture '{image}' of category '{category}' has {len(rows)} question"
                    f"{'s' * (len(rows) > 1)}; MME asks exactly two of each, give it the other one"
                )
    if kind == "circular":
        present, question = set(frame["index"]), groups(frame, kind)
        for index, main in zip(frame["index"], question, strict=True):
            if main not in present:
                yield f"index {index}: a rotation of question {main}, which is not there; add the row {main}"


def _bad_pictures(frame: pd.DataFrame) -> Iterator[str]:
    from PIL import Image

    remedy = "store the base64 text of a PNG or JPEG file"
    checked: set[str] = set()
    for index, image in zip(frame["index"], frame["image"], strict=True):
        if image in checked:
            continue
        checked.add(image)
        if len(image) <= LONGEST_REFERENCE:
            yield f"index {index}: the image '{image}' is too short for one and names no row that has one; {remedy}"
            continue
        try:
            Image.open(io.BytesIO(base64.b64decode(image, validate=True))).load()
        except (binascii.Error, ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            reason = str(error).partition(":")[0].split("<")[0].strip()
            yield f"index {index}: the image does not decode ({reason}); {remedy}"


def _shared_paths(frame: pd.DataFrame) -> Iterator[str]:
    several = frame.groupby("image_path")["image"].transform("nunique") > 1
    for row in frame[several].to_dict("records"):
        yield (
            f"index {row['index']}: '{row['image_path']}' names more than one picture, of which VLMEvalKit shows the "
            "first; give each its own image_path"
        )
