"""SEED-Bench (images): instances, their attributes, places and number, and how they lie (arXiv 2307.16125).

Seven of its nine image dimensions are here; instance interaction and text understanding need actions and writing.
"""

from __future__ import annotations

from eval.benchmarks.generated import Pictures, Plan, Row, choices

PLAN: Plan = (
    ({"category": "Scene Understanding"}, ("which_background",)),
    ({"category": "Instance Identity"}, ("which_object", "which_shape")),
    ({"category": "Instance Attribute"}, ("which_colour",)),
    ({"category": "Instance Location"}, ("which_position",)),
    ({"category": "Instance Counting"}, ("which_total", "which_count")),
    ({"category": "Spatial Relation"}, ("which_relation",)),
    ({"category": "Visual Reasoning"}, ("which_attribute", "which_sum")),
)
# With fewer items a category would have no question.
FEWEST = len(PLAN)


def rows(items: int, seed: int, corpus_seed: int, image_size: int) -> list[Row]:
    """`items` questions about as many validation pictures.

    Returns
    -------
    Rows of index, question, A to D, answer (letter), category, source (the picture's id) and image (base64 PNG).
    """
    return choices(PLAN, Pictures("SEEDBench", items, seed, corpus_seed, image_size))
