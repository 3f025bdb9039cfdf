"""POPE: does a model see objects that are not there? (arXiv 2305.10355)

An object is a coloured shape. For each picture one question is about an object that is there and one about an object
that is not: any (random), one that captions like to mention (popular), or one made of a colour and a shape that are
both there, on different things (adversarial). Which object is which is settled before the picture, at even odds, so
that an object's name tells nothing of the answer; both are held-out combinations, or neither is.
"""

from __future__ import annotations

from itertools import islice

from eval.benchmarks.generated import Pictures, Row, picture_name
from prior.corpus.questions import YES_NO_SUFFIX
from prior.corpus.scenes import HELD_OUT, POPULAR, Scene
from prior.corpus.world import COMBINATIONS, sample
from prior.corpus.yes_no import is_there
from prior.errors import UserError

CATEGORIES = ("random", "popular", "adversarial")
# With fewer items a category would have no question.
FEWEST = 2 * len(CATEGORIES)
# Pictures looked at for one pair of objects before another pair is drawn, and pairs drawn before giving up.
PICTURES, PAIRS = 4000, 50
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
    """A picture, an object in it and an object that is not."""
    among = POPULAR if category == "popular" else [found for found in COMBINATIONS if (found in HELD_OUT) == held_out]
    for _ in range(PAIRS):
        there, absent = sample(pictures.rng, among, 2)
        for index, shown in islice(pictures.scenes(), PICTURES):
            if _allows(shown, there, absent, category):
                pictures.used.add(index)
                return index, (there, absent)
    raise UserError(f"POPE of {pictures.items} items: no picture is left that allows a question; ask for fewer")


def _allows(shown: Scene, there: Combination, absent: Combination, category: str) -> bool:
    present = {(thing.colour, thing.shape) for thing in shown.things}
    if there not in present or absent in present:
        return False
    colour, shape = absent
    return category != "adversarial" or (any(c == colour for c, _ in present) and any(s == shape for _, s in present))
