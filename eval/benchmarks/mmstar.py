"""MMStar: questions that cannot be answered without the picture, over six core abilities (arXiv 2403.20330).

Science and technology have no place in a world of shapes; geometry stands in for them.
"""

from __future__ import annotations

from eval.benchmarks.generated import Pictures, Plan, Row, choices

PLAN: Plan = (
    ({"category": "coarse perception"}, ("which_background", "which_object")),
    ({"category": "fine-grained perception"}, ("which_colour", "which_position")),
    ({"category": "instance reasoning"}, ("which_attribute", "which_object")),
    ({"category": "logical reasoning"}, ("which_relation", "which_position")),
    ({"category": "math"}, ("which_total", "which_count", "which_sum")),
    ({"category": "science & technology"}, ("which_shape",)),
)
# With fewer items a category would have no question.
FEWEST = len(PLAN)


def rows(items: int, seed: int, corpus_seed: int, image_size: int) -> list[Row]:
    """`items` questions about as many validation pictures.

    Returns
    -------
    Rows of index, question, A to D, answer (letter), category, source (the picture's id) and image (base64 PNG).
    """
    return choices(PLAN, Pictures("MMStar", items, seed, corpus_seed, image_size))
