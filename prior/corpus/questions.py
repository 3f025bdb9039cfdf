"""Questions about scenes, for tuning and for benchmarks, that cannot be answered without the picture.

The answer is settled before the scene: a `Goal` fixes, at even odds, whether a yes/no answer is yes, which count of a
shape is asked for, and whether the right answer is a held-out combination; then scenes are tried until one allows the
question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from prior.corpus.goals import Goal, draw_goal
from prior.corpus.kinds import CHOICE_KINDS, KINDS, MIX, YES_NO_KINDS, YES_NO_MIX
from prior.corpus.world import Scene, pick, sample, scene
from prior.errors import UserError

__all__ = [
    "CHOICE_KINDS",
    "KINDS",
    "MIX",
    "YES_NO_KINDS",
    "YES_NO_MIX",
    "Goal",
    "Question",
    "ask",
    "draw_goal",
    "exchange",
    "find",
    "prompt",
    "tuning_questions",
]

YES_NO_SUFFIX = "Please answer yes or no."
LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """A question with its right answer: ``Yes`` or ``No``, or the text of one of the four options.

    `said` is what a model is taught to say: for yes/no ``<evidence>: Yes`` or ``<evidence>: No``, else the option.
    """

    text: str
    answer: str
    said: str
    options: tuple[str, ...] | None
    kind: str
    category: str

    @property
    def prompt(self) -> str:
        """The question with its options by letters, as `prompt` puts it."""
        return prompt(self.text, dict(zip(LETTERS, self.options, strict=True)) if self.options else None)


def ask(scene: Scene, kind: str, rng: Generator, goal: Goal) -> Question | None:
    """A question of a kind with the goal's answer about a scene; None where the scene does not allow one."""
    entry = KINDS[kind]
    if entry.yes_no:
        if not (stated := entry.yes_no(scene, rng, goal)):
            return None
        words, evidence = stated
        answer = "Yes" if goal.truth else "No"
        return Question(f"{words} {YES_NO_SUFFIX}", answer, f"{evidence}: {answer}", None, kind, entry.category)
    assert entry.choice is not None
    found = entry.choice(scene, rng, goal)
    if not found:
        return None
    words, answer, wrong = found
    options = tuple(sample(rng, (answer, *wrong), 4))
    return Question(words, answer, answer, options, kind, entry.category)


def find(kind: str, split: str, stop: int, corpus_seed: int, rng: Generator) -> tuple[int, Question]:
    """A question of a kind about one of the first `stop` scenes of a split, and that scene's index."""
    goal = draw_goal(rng, held_out=split == "val")
    for _ in range(20_000):
        index = int(rng.random() * stop)
        if question := ask(scene(split, index, corpus_seed), kind, rng, goal):
            return index, question
    raise UserError(f"none of the {stop} {split} pictures allows a question of kind '{kind}'; generate more pictures")


def prompt(text: str, options: Mapping[str, str] | None, hint: str = "") -> str:
    """The text that VLMEvalKit's data sets put to a model: `ImageMCQDataset.build_prompt`, or the plain question.

    `options` are texts by their letters, in order; a hint is only given beside options.
    """
    if not options:
        return text
    before = f"Hint: {hint}\n" if hint else ""
    listed = "".join(f"{letter}. {option}\n" for letter, option in options.items())
    return f"{before}Question: {text}\nOptions:\n{listed}Please select the correct answer from the options above. \n"


def exchange(prompt_text: str) -> str:
    """A prompt as tuned models see it; the answer follows after a space."""
    return prompt_text.rstrip() + "\nAnswer:"


def tuning_questions(n: int, seed: int, n_train: int, corpus_seed: int) -> Iterator[dict[str, str]]:
    """Yield `n` questions about the first `n_train` training pictures.

    Yields
    ------
    ``id`` of the picture, ``prompt`` as `exchange` makes it, and ``answer``: what is `said`, with its leading space.
    """
    for number in range(n):
        rng = np.random.default_rng([seed, number, n_train, corpus_seed])
        index, question = find(pick(rng, MIX), "train", n_train, corpus_seed, rng)
        yield {
            "id": f"train-{index:06d}",
            "prompt": exchange(question.prompt),
            "answer": f" {question.said}",
        }
