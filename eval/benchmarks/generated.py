"""What the benchmarks of the generated world share: finding pictures for questions, and multiple-choice rows."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from zlib import crc32

import numpy as np

from prior.corpus.questions import LETTERS, Goal, Question, ask, draw_goal
from prior.corpus.scenes import Scene, pair, scene
from prior.corpus.world import pick
from prior.errors import UserError

Row = dict[str, Any]
# A category with the kinds of questions that stand for it.
Plan = Sequence[tuple[dict[str, str], Sequence[str]]]


@dataclass
class Pictures:
    """Validation pictures for one benchmark, none of which is used twice."""

    benchmark: str
    items: int
    seed: int
    corpus_seed: int
    image_size: int
    used: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([crc32(self.benchmark.encode()), self.seed, self.corpus_seed])
        # Rare scenes must be among them; pictures beyond the stored validation split are drawn in the same way.
        self.stop = 2000 + 10 * self.items

    def scenes(self) -> Iterator[tuple[int, Scene]]:
        """Yield unused scenes in random order, for ever; whoever takes one adds it to `used`."""
        for _ in range(20 * self.stop):
            index = int(self.rng.random() * self.stop)
            if index not in self.used:
                yield index, scene("val", index, self.corpus_seed)
        raise UserError(
            f"{self.benchmark} of {self.items} items: no picture is left that allows a question; ask for fewer"
        )

    def find(self, kind: str, goals: Sequence[Goal]) -> tuple[int, list[Question]]:
        """A picture that allows a question of a kind for each goal, with these questions."""
        for index, shown in self.scenes():
            asked = [question for goal in goals if (question := ask(shown, kind, self.rng, goal))]
            if len(asked) == len(goals):
                self.used.add(index)
                return index, asked
        raise AssertionError("`scenes` ends by raising")

    def goal(self) -> Goal:
        return draw_goal(self.rng, held_out=True)

    def image(self, index: int) -> str:
        """The base64 text of the PNG that the corpus holds for a validation picture."""
        return _image(index, self.corpus_seed, self.image_size)


@lru_cache(maxsize=4096)
def _image(index: int, seed: int, size: int) -> str:
    return base64.b64encode(pair("val", index, seed, size)["image"]).decode("ascii")


def picture_name(index: int) -> str:
    return f"val-{index:06d}"


def choices(plan: Plan, pictures: Pictures) -> list[Row]:
    """Multiple-choice rows in VLMEvalKit's format: the categories in turn, their kinds at random."""
    rows = []
    for number in range(pictures.items):
        labels, kinds = plan[number % len(plan)]
        index, (question,) = pictures.find(pick(pictures.rng, kinds), [pictures.goal()])
        assert question.options is not None
        options = dict(zip(LETTERS, question.options, strict=True))
        letter = LETTERS[question.options.index(question.answer)]
        row = {"index": number, "question": question.text, **options, "answer": letter, **labels}
        rows.append({**row, "source": picture_name(index), "image": pictures.image(index)})
    return rows
