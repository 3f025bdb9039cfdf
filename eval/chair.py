"""CHAIR: how much of what captions mention is not in their pictures? (Rohrbach et al. 2018, arXiv 1809.02156)

A caption mentions an object wherever a name of it stands, the longest one first: "hot dog" is no dog. As in the
authors' ``chair.py``, each mention counts, also of an object mentioned before, and one that is not in the picture is
made up:

``chair_s``
    captions with a made-up mention, of all captions,
``chair_i``
    made-up mentions, of all mentions,
``recall``
    objects that are there and mentioned, of those that are there (each once per picture; not in the paper),
``words``
    mean length of a caption.

The shares are in percent; a share of nothing is 0 with ``n_items`` 0, and whoever shows it must leave it blank. A
longer caption has more room for both truth and invention, so the same numbers come with the suffix ``_equal``: for each
picture, the captions of the objectives that are compared are read as far as the shortest of them goes.

Two things differ from ``chair.py``. A word is a name if it is one in the table or the plural of one, where ``chair.py``
makes every word singular by rule ("bus" becomes "bu"). And what it adds for COCO in its code ("baby bird" is a bird and
no person) must stand in the table, in the line of the object.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence, Set
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from eval.checkpoints import parse_checkpoint, prediction_file
from eval.results import ITEM_COLUMNS, METRIC_COLUMNS
from eval.tsv import read_benchmark
from prior.errors import UserError

EQUAL = "_equal"
# A word with its hyphens and apostrophes, or a mark; no name goes across a mark.
_TOKEN = re.compile(r"\w+(?:[-‐'’]\w+)*|[^\w\s]")
_WORD = re.compile(r"\w")
_POSSESSIVE = re.compile(r"['’]s$")


class Synonyms(NamedTuple):
    """The object that each name stands for, names as `_normal` has them, and the number of words of the longest."""

    objects: dict[str, str]
    longest: int

    def object(self, name: str) -> str | None:
        return self.objects.get(_normal(name))


class Caption(NamedTuple):
    """What counts of a caption: its length in words, and for each mention its object and how many words end with it."""

    words: int
    mentions: tuple[tuple[str, int], ...]

    @property
    def objects(self) -> list[str]:
        return [name for name, _ in self.mentions]


def read_synonyms(path: str | Path) -> Synonyms:
    """Read a table of synonyms: a line per object, its names separated by commas, the first of them its own.

    The plural of a name means the same, unless the table says otherwise.

    Raises
    ------
    UserError
        If the file is missing, is not UTF-8 text, holds an empty name, or gives one name to two objects.
    """
    import inflect

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; write a line per object, its names separated by commas")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    objects: dict[str, str] = {}
    plurals: dict[str, str] = {}
    english = inflect.engine()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        names = [name.strip() for name in line.split(",")]
        if not all(map(_normal, names)):
            raise UserError(f"{path}: line {number} holds an empty name; remove the comma beside it")
        for name in names:
            if objects.setdefault(_normal(name), names[0]) != names[0]:
                known = objects[_normal(name)]
                raise UserError(
                    f"{path}: line {number}: '{name}' is a name of '{known}' already; take it out of one line"
                )
            plurals.setdefault(_normal(english.plural_noun(name)), names[0])
    if not objects:
        raise UserError(f"{path}: there is no object in it; write a line for each, its names separated by commas")
    objects = plurals | objects
    return Synonyms(objects, max(len(name.split()) for name in objects))


def read_caption(text: str, synonyms: Synonyms) -> Caption:
    """Count the words of a caption and find the objects that it mentions."""
    tokens = _tokens(text)
    words = list(accumulate(bool(_WORD.match(token)) for token in tokens))
    mentions = []
    start = 0
    while start < len(tokens):
        for stop in range(min(start + synonyms.longest, len(tokens)), start, -1):
            if name := synonyms.objects.get(" ".join(tokens[start:stop])):
                mentions.append((name, words[stop - 1]))
                break
        # The end of the name, or of the one word that begins none.
        start = stop
    return Caption(words[-1] if words else 0, tuple(mentions))


def cut(caption: Caption, words: int) -> Caption:
    """The caption read no further than its first `words` words.

    Only whole mentions stay: a "hot dog" that is cut in two leaves nothing, and no other object than was meant.
    """
    return Caption(min(caption.words, words), tuple(mention for mention in caption.mentions if mention[1] <= words))


def scores(captions: Sequence[Caption], there: Sequence[Set[str]]) -> list[dict[str, Any]]:
    """Rows of ``metric, value, n_items, unit``; `there` holds the objects that are in each caption's picture."""
    pairs = list(zip(captions, there, strict=True))
    made_up = [sum(name not in shown for name in caption.objects) for caption, shown in pairs]
    shares = {
        "chair_s": (sum(map(bool, made_up)), len(captions)),
        "chair_i": (sum(made_up), sum(len(caption.mentions) for caption in captions)),
        "recall": (sum(len(shown & set(caption.objects)) for caption, shown in pairs), sum(map(len, there))),
    }
    rows = [
        {
            "metric": metric,
            "value": 100 * part / all_of_it if all_of_it else 0.0,
            "n_items": all_of_it,
            "unit": "percent",
        }
        for metric, (part, all_of_it) in shares.items()
    ]
    length = sum(caption.words for caption in captions) / len(captions) if captions else 0.0
    return [*rows, {"metric": "words", "value": length, "n_items": len(captions), "unit": "words"}]


def score_captions(
    benchmark: Path,
    synonyms: Path,
    predictions: Path,
    checkpoints: Sequence[str],
    runs: Path | None,
    no_picture: bool = False,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metrics and items of all checkpoints, in the columns of ``metrics.csv`` and ``items.parquet``.

    Parameters
    ----------
    benchmark
        TSV with the columns index and objects (JSON list of the objects that are there).
    synonyms
        Table of their names.
    predictions
        Folder of ``<checkpoint>/<benchmark>.tsv``, whose column prediction is the caption.
    checkpoints
        All that are to be compared: the objectives among them that share everything else are cut to equal length. An
        ablation, which is at fewer scales than others, is cut to their length and not they to its.
    runs
        Folder of ``<run>/<stage>/run.yaml``, which names the final step.
    no_picture
        Also score what each checkpoint says without having seen the picture.

    Raises
    ------
    UserError
        If a file is missing or broken, or holds captions of other pictures.
    """
    names = read_synonyms(synonyms)
    frame = read_benchmark(benchmark, pictures=False)
    there = _objects_there(benchmark, frame, names)
    name = benchmark.stem
    asked = [
        (checkpoint, picture) for picture in ((True, False) if no_picture else (True,)) for checkpoint in checkpoints
    ]
    texts = {key: _texts(prediction_file(predictions, key[0], name, key[1]), frame) for key in asked}
    captions = {key: [read_caption(text, names) for text in own] for key, own in texts.items()}
    whole = _everywhere(checkpoints)
    metrics, items = [], []
    for (checkpoint, picture), own in captions.items():
        keys = parse_checkpoint(checkpoint, runs) | {"picture": "with" if picture else "without", "benchmark": name}
        group = (_comparable(checkpoint), picture)
        rivals = [key for key in asked if (_comparable(key[0]), key[1]) == group]
        compared = [captions[key] for key in rivals if key[0] == checkpoint or _arm(key[0]) in whole]
        shortest = [min(caption.words for caption in same) for same in zip(*compared, strict=True)]
        level = [cut(caption, words) for caption, words in zip(own, shortest, strict=True)]
        metrics += [keys | row for row in scores(own, there)]
        metrics += [keys | row | {"metric": row["metric"] + EQUAL} for row in scores(level, there)]
        answers = {
            "item": frame["index"],
            "group": frame["index"],
            "category": "",
            "correct": [set(caption.objects) <= shown for caption, shown in zip(own, there, strict=True)],
            "answer": frame["objects"],
            "prediction": texts[checkpoint, picture],
            "parsed": [", ".join(caption.objects) for caption in own],
        }
        items.append(pd.DataFrame(answers).assign(**keys))
    return pd.DataFrame(metrics)[METRIC_COLUMNS], pd.concat(items, ignore_index=True)[ITEM_COLUMNS]


def _tokens(text: str) -> list[str]:
    """Words and marks, in one case and one way of writing: "Hot-dog's" is "hot dog"."""
    tokens = _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())
    return [re.sub("[-‐]", " ", _POSSESSIVE.sub("", token)) if _WORD.match(token) else token for token in tokens]


def _normal(name: str) -> str:
    return " ".join(_tokens(name))


def _comparable(checkpoint: str) -> list[str]:
    """What two checkpoints share that differ in nothing but the objective."""
    arch, _, *rest = checkpoint.split("/")
    return [arch, *rest]


def _arm(checkpoint: str) -> tuple[str, str]:
    """Architecture and objective of a checkpoint."""
    arch, objective, *_ = checkpoint.split("/")
    return arch, objective


def _everywhere(checkpoints: Sequence[str]) -> set[tuple[str, str]]:
    """The arms that are at as many scales as any of their architecture."""
    scales: dict[tuple[str, str], set[str]] = {}
    for checkpoint in checkpoints:
        scales.setdefault(_arm(checkpoint), set()).add(checkpoint.split("/")[2])
    most = {arch: max(len(own) for (other, _), own in scales.items() if other == arch) for arch, _ in scales}
    return {arm for arm, own in scales.items() if len(own) == most[arm[0]]}


def _objects_there(path: Path, frame: pd.DataFrame, synonyms: Synonyms) -> list[frozenset[str]]:
    for column in ("index", "objects"):
        if column not in frame:
            raise UserError(f"{path}: lacks the column '{column}'; make the benchmark again")
    known = set(synonyms.objects.values())
    there = []
    for index, text in zip(frame["index"], frame["objects"], strict=True):
        try:
            shown = json.loads(text)
        except ValueError:
            shown = None
        if not isinstance(shown, list) or not all(isinstance(name, str) for name in shown):
            raise UserError(f"{path}: index {index}: the objects are no JSON list of names; make the benchmark again")
        if strange := sorted(set(shown) - known):
            raise UserError(f"{path}: index {index}: '{strange[0]}' is no object of the table of synonyms; add a line")
        there.append(frozenset(shown))
    return there


def _texts(path: Path, frame: pd.DataFrame) -> list[str]:
    """The captions of a prediction file in the order of the benchmark, which must be what was asked."""
    answers = read_benchmark(path, pictures=False)
    for column in ("index", "objects", "prediction"):
        if column not in answers:
            raise UserError(f"{path}: lacks the column '{column}'; predict again")
    asked = dict(zip(frame["index"], frame["objects"], strict=True))
    if len(answers) != len(asked) or dict(zip(answers["index"], answers["objects"], strict=True)) != asked:
        raise UserError(f"{path}: its pictures and objects are not the benchmark's, once each; predict again")
    return list(answers.set_index("index")["prediction"].loc[frame["index"]])
