"""MMBench: graded abilities, each question asked with its options in every rotation (arXiv 2307.06281).

Four of its six abilities are here; attribute and relation reasoning rest on knowledge of a world that this one lacks.
"""

from __future__ import annotations

from eval.benchmarks.generated import Pictures, Plan, Row, choices
from prior.corpus.questions import LETTERS

# VLMEvalKit's circular scoring: a rotation's index is that of its question plus a multiple of this.
ROTATION = 1_000_000
_INSTANCE = "finegrained_perception (instance-level)"
_CROSS = "finegrained_perception (cross-instance)"
PLAN: Plan = (
    ({"category": "image_scene", "l2-category": "coarse_perception"}, ("which_background",)),
    ({"category": "attribute_recognition", "l2-category": _INSTANCE}, ("which_colour", "which_colour", "which_shape")),
    ({"category": "object_localization", "l2-category": _INSTANCE}, ("which_position", "which_total")),
    ({"category": "image_topic", "l2-category": "coarse_perception"}, ("which_object",)),
    ({"category": "spatial_relationship", "l2-category": _CROSS}, ("which_relation",)),
    ({"category": "attribute_comparison", "l2-category": _CROSS}, ("which_attribute",)),
    ({"category": "future_prediction", "l2-category": "logic_reasoning"}, ("which_sum",)),
)
# With fewer items a category would have no question.
FEWEST = len(PLAN)


def rows(items: int, seed: int, corpus_seed: int, image_size: int) -> list[Row]:
    """`items` questions about as many validation pictures, in four rotations each.

    Returns
    -------
    4 x `items` rows of index (int), question, A to D, answer (letter), category, l2-category, source (the picture's id)
    and image (base64 PNG); first all questions, then all their first rotations, and so on.
    """
    asked = choices(PLAN, Pictures("MMBench", items, seed, corpus_seed, image_size))
    return [_rotated(row, step) for step in range(len(LETTERS)) for row in asked]


def _rotated(row: Row, step: int) -> Row:
    turned = LETTERS[step:] + LETTERS[:step]
    options = {letter: row[before] for letter, before in zip(LETTERS, turned, strict=True)}
    answer = LETTERS[turned.index(row["answer"])]
    return row | options | {"index": row["index"] + step * ROTATION, "answer": answer}
