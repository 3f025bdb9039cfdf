"""CHAIR: pictures to be described in free words, each with the objects that are there (arXiv 1809.02156).

In the generated world an object is a coloured shape, and which are there is known exactly. Of other pictures COCO's
instances tell, and as in CHAIR whatever the picture's own captions mention counts as there too. How captions are scored
is in `eval.chair`.
"""

from __future__ import annotations

import base64
import json
import random
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from eval.benchmarks.generated import Pictures, Row
from eval.chair import Synonyms, read_caption, read_synonyms
from prior.corpus.goals import plural
from prior.corpus.world import COMBINATIONS
from prior.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


def rows(items: int, seed: int, corpus_seed: int, image_size: int) -> list[Row]:
    """`items` validation pictures of the generated world.

    Returns
    -------
    Rows of index, image (base64 PNG) and objects (JSON list of names, sorted).
    """
    pictures = Pictures("CHAIR", items, seed, corpus_seed, image_size)
    table: list[Row] = []
    for index, shown in islice(pictures.scenes(), items):
        pictures.used.add(index)
        objects = {thing.name for thing in shown.things}
        table.append({"index": len(table), "image": pictures.image(index), "objects": json.dumps(sorted(objects))})
    return table


def folder_rows(corpus: Dataset, items: int, seed: int, objects: str | Path, synonyms: str | Path) -> list[Row]:
    """Pictures of a held-out split in random order, at most `items`.

    Parameters
    ----------
    corpus
        A stored split of a folder corpus: columns id (``<stem>-<k>``), image and caption.
    objects
        COCO's instances JSON; a picture is known there by its file's name without folders and suffix.
    synonyms
        Table of the objects' names, as `eval.chair.read_synonyms` reads it.

    Returns
    -------
    Rows of index, image (base64) and objects (JSON list of names, sorted).

    Raises
    ------
    UserError
        If a file is missing or broken, a category has no line in the table, or a held-out picture no entry.
    """
    names = read_synonyms(synonyms)
    annotated = _annotated(Path(objects), names, Path(synonyms))
    pictures: dict[str, list[int]] = defaultdict(list)
    for row, identity in enumerate(corpus["id"]):
        pictures[identity.rpartition("-")[0]].append(row)
    if unknown := sorted(set(pictures) - set(annotated)):
        raise UserError(
            f"{objects}: no entry for {len(unknown)} of the {len(pictures)} held-out pictures, for example "
            f"'{unknown[0]}'; add them to its images, with their annotations"
        )
    stems = sorted(pictures)
    random.Random(f"CHAIR {seed}").shuffle(stems)
    captions = list(corpus["caption"])
    table: list[Row] = []
    for stem in stems[:items]:
        own = pictures[stem]
        there = annotated[stem].union(*(read_caption(captions[row], names).objects for row in own))
        image = base64.b64encode(corpus[own[0]]["image"]).decode("ascii")
        table.append({"index": len(table), "image": image, "objects": json.dumps(sorted(there), ensure_ascii=False)})
    return table


def synonyms(path: str | Path | None = None) -> str:
    """The table of names as text: of the file `path` once it is checked, or of the generated world."""
    if path is None:
        return "".join(f"{colour} {shape}, {colour} {plural(shape)}\n" for colour, shape in COMBINATIONS)
    read_synonyms(path)
    return Path(path).read_text(encoding="utf-8-sig")


def _annotated(path: Path, names: Synonyms, table: Path) -> dict[str, set[str]]:
    """The annotated objects of each picture, by its file's stem."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give COCO's instances JSON")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        pictures = {entry["id"]: Path(entry["file_name"]).stem for entry in content["images"]}
        categories = {entry["id"]: (entry["name"], names.object(entry["name"])) for entry in content["categories"]}
        annotations = [(entry["image_id"], entry["category_id"]) for entry in content["annotations"]]
        unknown = next((pair for pair in annotations if pair[0] not in pictures or pair[1] not in categories), None)
    except ValueError as error:
        raise UserError(f"{path}: not JSON in UTF-8 ({error}); mend it") from None
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path}: not COCO's instances format; it takes images (id, file_name), categories (id, name) and "
            "annotations (image_id, category_id)"
        ) from None
    for name, known in categories.values():
        if known is None:
            raise UserError(f"{table}: the category '{name}' of {path.name} is not in it; add a line for it")
    if unknown:
        raise UserError(
            f"{path}: an annotation of image {unknown[0]!r}, category {unknown[1]!r}: one has no entry; add it"
        )
    if len(set(pictures.values())) < len(pictures):
        stems = list(pictures.values())
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise UserError(f"{path}: two images have a file called '{twice}'; give each its own name")
    objects: dict[str, set[str]] = {stem: set() for stem in pictures.values()}
    for image, category in annotations:
        name = categories[category][1]
        assert name is not None
        objects[pictures[image]].add(name)
    return objects
