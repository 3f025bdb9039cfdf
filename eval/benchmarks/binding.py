"""Binding: which colour belongs to which shape, where both colours and both shapes are there.

A model that sees the parts but not how they belong together is at chance (after ARO, arXiv 2210.01936).
"""

from __future__ import annotations

from eval.benchmarks.generated import Pictures, Row
from prior.corpus.world import Scene, Thing, pick, sample

LETTERS = "AB"


def rows(items: int, seed: int, corpus_seed: int, image_size: int) -> list[Row]:
    """`items` questions about as many validation pictures.

    Returns
    -------
    Rows of index, question, A and B (the colours of one are those of the other, swapped), answer (letter), category and
    image (base64 PNG).
    """
    pictures = Pictures("Binding", items, seed, corpus_seed, image_size)
    table: list[Row] = []
    for index, shown in pictures.scenes():
        if len(table) == items:
            break
        if not (pairs := swappable(shown)):
            continue
        pictures.used.add(index)
        first, second = pick(pictures.rng, pairs)
        right = f"a {first.name} and a {second.name}"
        wrong = f"a {second.colour} {first.shape} and a {first.colour} {second.shape}"
        options = dict(zip(LETTERS, sample(pictures.rng, (right, wrong), 2), strict=True))
        answer = next(letter for letter, text in options.items() if text == right)
        row = {"index": len(table), "question": "Which of these is in the picture?", **options, "answer": answer}
        table.append({**row, "category": "binding", "image": pictures.image(index)})
    return table


def swappable(scene: Scene) -> list[tuple[Thing, Thing]]:
    """Pairs of things that differ in colour and shape, neither of which is there with the other's colour."""
    names = {thing.name for thing in scene.things}
    return [
        (first, second)
        for first in scene.things
        for second in scene.things
        if first.colour != second.colour
        and first.shape != second.shape
        and not {f"{second.colour} {first.shape}", f"{first.colour} {second.shape}"} & names
    ]
