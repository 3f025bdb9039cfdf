"""MME: two questions about a picture, one to be answered with yes and one with no (arXiv 2306.13394).

Of MME's fourteen categories this world has seven: there are no posters, celebrities, landmarks, artworks, texts or
programs in it. VLMEvalKit sums over the categories that are there: at most 1000 points for perception (not 2000) and
400 for reasoning (not 800).
"""

from __future__ import annotations

from dataclasses import replace

from eval.benchmarks.generated import Pictures, Row, picture_name
from prior.corpus.world import pick

CATEGORIES = {
    "existence": ("existence", "shape_existence"),
    "color": ("colour",),
    "count": ("how_many", "shape_count"),
    "position": ("position",),
    "scene": ("background",),
    "commonsense_reasoning": ("relation", "relation", "larger", "same_colour"),
    "numerical_calculation": ("arithmetic", "more"),
}
# With fewer items a category would have no question.
FEWEST = 2 * len(CATEGORIES)


def rows(items: int, seed: int, corpus_seed: int, image_size: int) -> list[Row]:
    """`items` questions (an odd number is rounded down) about half as many validation pictures.

    Returns
    -------
    Rows of index, category, image_path, question, answer (``Yes`` or ``No``) and image (base64 PNG); the two questions
    about a picture follow one another, in random order.
    """
    pictures = Pictures("MME", items, seed, corpus_seed, image_size)
    table: list[Row] = []
    for number in range(items // 2):
        category = tuple(CATEGORIES)[number % len(CATEGORIES)]
        first = pictures.goal()
        goals = [first, replace(first, truth=not first.truth)]
        index, asked = pictures.find(pick(pictures.rng, CATEGORIES[category]), goals)
        for question in asked:
            row = {"index": len(table), "category": category, "image_path": f"{category}/{picture_name(index)}.png"}
            table.append({**row, "question": question.text, "answer": question.answer, "image": pictures.image(index)})
    return table
