"""The generated corpus: pictures with captions whose image-related words are known, and texts of the same language."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

from numpy.random import Generator
from PIL import Image

from prior.corpus import questions
from prior.corpus.captions import HUMAN_SHARE, classified_caption, join
from prior.corpus.world import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    POPULAR,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
    draw,
    generator,
    pick,
    render,
    scene,
)

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "HELD_OUT",
    "HUMAN_SHARE",
    "POPULAR",
    "SHAPES",
    "SIZES",
    "TEXTURES",
    "Scene",
    "Thing",
    "classified_caption",
    "pair",
    "pairs",
    "picture",
    "render",
    "scene",
    "text_document",
    "texts",
]


def picture(scene: Scene, size: int, rng: Generator) -> bytes:
    """A scene as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(render(scene, size, rng)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def pair(split: str, index: int, seed: int, image_size: int) -> dict[str, Any]:
    """A picture with its caption: ``id``, ``image`` (PNG bytes), ``caption``, ``relevant`` ([start, end) spans)."""
    rng = generator(split, index, seed)
    shown = draw(split, rng)
    caption, relevant = join(classified_caption(shown, rng))
    image = picture(shown, image_size, rng)
    return {"id": f"{split}-{index:06d}", "image": image, "caption": caption, "relevant": relevant}


def pairs(split: str, start: int, stop: int, seed: int, image_size: int) -> Iterator[dict[str, Any]]:
    """Yield the pairs of a range; any range is independent of the others."""
    for index in range(start, stop):
        yield pair(split, index, seed, image_size)


def text_document(index: int, seed: int) -> str:
    """A document without a picture: a caption, a description of a scene with questions answered from it, or a quiz.

    Captions hold the stock phrases; the others teach a base LLM how questions are put and answered, as any LLM knows
    before it is joined to pictures. None mentions a held-out combination as something to be seen.
    """
    rng = generator("text_only", index, seed)
    kind = rng.random()
    if kind < 0.4:
        return join(classified_caption(draw("text_only", rng), rng))[0]
    if kind < 0.5:
        shown, asked = _interview(rng, questions.MIX, 1 + int(rng.random() * 3))
        return "\n".join([_description(shown, rng), *map(_exchange, asked)])
    # Each question is about another picture that nobody sees: only whether question and evidence agree can be learned.
    return "\n".join(_exchange(one) for _ in range(6) for one in _interview(rng, questions.YES_NO_MIX, 1)[1])


def texts(start: int, stop: int, seed: int) -> Iterator[dict[str, str]]:
    """Yield the text-only documents of a range."""
    for index in range(start, stop):
        yield {"id": f"text-{index:06d}", "text": text_document(index, seed)}


def _interview(rng: Generator, kinds: Sequence[str], count: int) -> tuple[Scene, list[questions.Question]]:
    """Some questions and a scene that allows them: as for pictures, the answers are settled first."""
    while True:
        wanted = [(pick(rng, kinds), questions.draw_goal(rng, False)) for _ in range(count)]
        for _ in range(100):
            shown = draw("text_only", rng)
            asked = [one for kind, goal in wanted if (one := questions.ask(shown, kind, rng, goal))]
            if len(asked) == len(wanted):
                return shown, asked


def _exchange(asked: questions.Question) -> str:
    return f"{questions.exchange(asked.prompt)} {asked.said}"


def _description(shown: Scene, rng: Generator) -> str:
    """Everything that a question can ask about, in plain words."""
    things = [
        f"a {thing.size} {thing.texture} {thing.colour} {thing.shape} at the {thing.position}" for thing in shown.things
    ]
    lead = pick(rng, ("the picture shows", "a picture of", "there is", "we see"))
    return f"{lead} {', '.join(things)} on a {shown.background} background"
