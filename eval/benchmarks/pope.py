"""POPE: does a model see objects that are not there? (arXiv 2305.10355)

An object is a coloured shape. For each picture one question is about an object that is there and one about an object
that is not: any (random), one that captions like to mention (popular), or one made of a colour and a shape that are
both there, on different things (adversarial). Both questions are about held-out combinations, or neither is.
"""

from __future__ import annotations

from collections.abc import Sequence

from numpy.random import Generator

from eval.benchmarks.generated import Pictures, Row, picture_name
from prior.corpus.kinds import is_there
from prior.corpus.questions import YES_NO_SUFFIX
from prior.corpus.scenes import HELD_OUT, POPULAR, Scene
from prior.corpus.world import COMBINATIONS, pick

CATEGORIES = ("random", "popular", "adversarial")
Combination = tuple[str, str]


def rows(items: int, seed: int, corpus_seed: int, image_size: int) -> list[Row]:
    """`items` questions (an odd number is rounded down) about half as many validation pictures.

    Returns
    -------
    Rows of index, category, image_path, question, answer (``Yes`` or ``No``) and image (base64 PNG).
    """
    pictures = Pictures("POPE", items, seed, corpus_seed, image_size)
    table: list[Row] = []
    for number in range(items // 2):
        category = CATEGORIES[number % len(CATEGORIES)]
        held_out = bool(pictures.goal().held_out)
        index, objects = _find(pictures, category, held_out)
        for answer, found in zip(("Yes", "No"), objects, strict=True):
            row = {"index": len(table), "category": category, "image_path": f"{picture_name(index)}.png"}
            words = f"{is_there(*found)} {YES_NO_SUFFIX}"
            table.append({**row, "question": words, "answer": answer, "image": pictures.image(index)})
    return table


def _find(pictures: Pictures, category: str, held_out: bool) -> tuple[int, tuple[Combination, Combination]]:
    for index, shown in pictures.scenes():
        if objects := _objects(shown, category, held_out, pictures.rng):
            pictures.used.add(index)
            return index, objects
    raise AssertionError("`scenes` ends by raising")


def _objects(shown: Scene, category: str, held_out: bool, rng: Generator) -> tuple[Combination, Combination] | None:
    """An object that is there and one that is not; None where the scene has none of the category."""
    present = sorted({(thing.colour, thing.shape) for thing in shown.things})
    candidates: Sequence[Combination] = {
        "random": [found for found in COMBINATIONS if (found in HELD_OUT) == held_out],
        "popular": POPULAR,
        "adversarial": sorted({(colour, shape) for colour, _ in present for _, shape in present}),
    }[category]
    absent = [found for found in candidates if found not in present]
    if not absent:
        return None
    hallucinated = pick(rng, absent)
    alike = [found for found in present if (found in HELD_OUT) == (hallucinated in HELD_OUT)]
    return (pick(rng, alike), hallucinated) if alike else None
