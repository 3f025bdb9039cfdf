"""Multiple-choice questions: the words, the right answer, three distractors.

A function of a kind returns None where the scene does not allow the question.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from prior.corpus.goals import CHANGES, POSITIONS, Goal, allowed, count, distractors, ordered, plural, unique
from prior.corpus.phrases import NUMBERS
from prior.corpus.world import (
    BACKGROUNDS,
    COLOURS,
    COMBINATIONS,
    HELD_OUT,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
    pick,
    sample,
)

Choice = tuple[str, str, Sequence[str]]


def which_object(scene: Scene, rng: Generator, goal: Goal) -> Choice | None:
    present = sorted({(thing.colour, thing.shape) for thing in scene.things})
    if not (found := allowed(present, goal)):
        return None
    answer = pick(rng, found)
    wrong = distractors(rng, answer, [pair for pair in COMBINATIONS if pair not in present], goal)
    return (
        None
        if wrong is None
        else ("Which of these is in the picture?", " ".join(answer), [" ".join(pair) for pair in wrong])
    )


def which_colour(scene: Scene, rng: Generator, goal: Goal) -> Choice | None:
    pairs = [(thing.colour, thing.shape) for thing in scene.things if count(scene, thing.shape) == 1]
    if not (found := allowed(pairs, goal)):
        return None
    colour, shape = pick(rng, found)
    wrong = distractors(rng, (colour, shape), [(other, shape) for other in COLOURS if other != colour], goal)
    return None if wrong is None else (f"What color is the {shape}?", colour, [other for other, _ in wrong])


def which_shape(scene: Scene, rng: Generator, goal: Goal) -> Choice | None:
    colours = [thing.colour for thing in scene.things]
    pairs = [(thing.colour, thing.shape) for thing in scene.things if colours.count(thing.colour) == 1]
    if not (found := allowed(pairs, goal)):
        return None
    colour, shape = pick(rng, found)
    wrong = distractors(rng, (colour, shape), [(colour, other) for other in SHAPES if other != shape], goal)
    return None if wrong is None else (f"What shape is the {colour} thing?", shape, [other for _, other in wrong])


def which_position(scene: Scene, rng: Generator, goal: Goal) -> Choice | None:
    if not (found := unique(scene)):
        return None
    thing, words = pick(rng, found)
    wrong = sample(rng, [place for place in POSITIONS if place != thing.position], 3)
    return f"Where is the {words}?", thing.position, wrong


def which_total(scene: Scene, rng: Generator, goal: Goal) -> Choice | None:
    if len(scene.things) != goal.number + 1:
        return None
    answer = NUMBERS[len(scene.things)]
    return "How many things are in the picture?", answer, [word for word in NUMBERS[1:5] if word != answer]


def which_count(scene: Scene, rng: Generator, goal: Goal) -> Choice | None:
    if not (found := [shape for shape in SHAPES if count(scene, shape) == goal.number]):
        return None
    answer = NUMBERS[goal.number]
    asked = f"How many {plural(pick(rng, found))} are in the picture?"
    return asked, answer, [word for word in NUMBERS[:4] if word != answer]


def which_background(scene: Scene, rng: Generator, goal: Goal) -> Choice | None:
    wrong = [background for background in BACKGROUNDS if background != scene.background]
    return "What color is the background?", scene.background, wrong


def which_relation(scene: Scene, rng: Generator, goal: Goal) -> Choice | None:
    """Only things of the same row or column, so that one direction alone is right."""
    directions = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}
    answer = pick(rng, tuple(directions))

    def lies(first: Thing, second: Thing) -> bool:
        return (np.sign(first.row - second.row), np.sign(first.column - second.column)) == directions[answer]

    if not (pairs := ordered(scene, lies)):
        return None
    first, second = pick(rng, pairs)
    wrong = [direction for direction in directions if direction != answer]
    return f"Where is the {first} from the {second}?", answer, wrong


def which_attribute(scene: Scene, rng: Generator, goal: Goal) -> Choice | None:
    """One thing has the attribute, another one that is there has not; the rest is not in the picture."""
    word = pick(rng, (*SIZES, *TEXTURES))
    having = {(t.colour, t.shape) for t in scene.things if word in (t.size, t.texture)}
    lacking = {(t.colour, t.shape) for t in scene.things} - having
    if len(having) != 1 or not lacking:
        return None
    (answer,) = having
    present = pick(rng, sorted(lacking))
    if goal.held_out is None or present not in HELD_OUT:
        absent = [pair for pair in COMBINATIONS if pair not in having | lacking]
        wrong = distractors(rng, answer, absent, goal, count=2)
    elif goal.held_out or answer in HELD_OUT:
        wrong = None
    else:
        wrong = sample(rng, [pair for pair in COMBINATIONS if pair not in having | lacking | HELD_OUT], 2)
    return (
        None
        if wrong is None
        else (f"Which thing is {word}?", " ".join(answer), [" ".join(pair) for pair in (present, *wrong)])
    )


def which_sum(scene: Scene, rng: Generator, goal: Goal) -> Choice | None:
    if len(scene.things) != goal.number + 1:
        return None
    change, step = pick(rng, CHANGES)
    answer = NUMBERS[len(scene.things) + step]
    wrong = [word for word in NUMBERS[1 + step : 5 + step] if word != answer]
    return f"If one thing is {change}, how many things are in the picture?", answer, wrong
