"""The kinds of questions about a scene: what each asks, what the right answer is, which options are wrong.

A function of a kind gets a scene and a `Goal`, which is settled before; it returns None where the scene does not allow
the question. Everything that the goal leaves open is drawn symmetrically, so that words and options tell nothing of the
answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from prior.corpus.phrases import NUMBERS
from prior.corpus.world import (
    BACKGROUNDS,
    CELLS,
    COLOURS,
    COLUMNS,
    COMBINATIONS,
    HELD_OUT,
    MAX_THINGS,
    ROWS,
    SHAPES,
    SIZES,
    TEXTURES,
    Item,
    Scene,
    Thing,
    pick,
    sample,
)

POSITIONS = tuple(f"{ROWS[row]} {COLUMNS[column]}" for row, column in CELLS)
CHANGES = (("added", 1), ("taken away", -1))


@dataclass(frozen=True)
class Goal:
    """What is settled before the scene is chosen.

    `truth` is the answer to a yes/no question; `number`, 0 to 3, is the count of a shape that is asked for, one
    less than the number of things where that is asked for, or the place of an attribute among its values.
    `held_out` says whether the right answer, or the combination asked about, is a held-out one; None where pictures
    hold none of these, so that no option may be one either.
    """

    truth: bool
    number: int
    held_out: bool | None = None


def draw_goal(rng: Generator, held_out: bool) -> Goal:
    """Draw a goal; with `held_out`, a quarter of the answers are held-out combinations, as one option in four is."""
    unseen = rng.random() < 0.25
    return Goal(rng.random() < 0.5, int(rng.random() * 4), unseen if held_out else None)


def _unique(scene: Scene) -> list[tuple[Thing, str]]:
    """The things that words single out, with these words."""
    found = []
    for thing in scene.things:
        if sum(other.name == thing.name for other in scene.things) == 1:
            found.append((thing, thing.name))
        if sum(other.shape == thing.shape for other in scene.things) == 1:
            found.append((thing, thing.shape))
    return found


def _count(scene: Scene, shape: str) -> int:
    return sum(thing.shape == shape for thing in scene.things)


def _plural(shape: str, count: int = 2) -> str:
    return shape if count == 1 else shape + ("es" if shape == "cross" else "s")


def _allowed(pairs: Sequence[tuple[str, str]], goal: Goal) -> list[tuple[str, str]]:
    """The combinations that are held out, or that are not, as the goal says."""
    return [pair for pair in pairs if (pair in HELD_OUT) == bool(goal.held_out)]


def _distractors(
    rng: Generator, answer: tuple[str, str], wrong: Sequence[tuple[str, str]], goal: Goal, count: int = 3
) -> list[tuple[str, str]] | None:
    """Wrong combinations, so that with the answer exactly one is held out (none where pictures hold none)."""
    unseen = [pair for pair in wrong if pair in HELD_OUT]
    seen = [pair for pair in wrong if pair not in HELD_OUT]
    if goal.held_out is None:
        return sample(rng, seen, count) if len(seen) >= count else None
    if (answer in HELD_OUT) != goal.held_out or len(seen) < count or not (goal.held_out or unseen):
        return None
    return sample(rng, seen, count) if goal.held_out else [pick(rng, unseen), *sample(rng, seen, count - 1)]


# Yes/no questions: the words of a question to which the goal's truth is the answer, and the evidence for it, which is
# what is seen where the question looks.
# Our choice, not the paper's: models are taught to say the evidence first ("blue: No"). Whether a word of the question
# fits the picture depends on both at once, and neither alone tells anything of the answer; a tiny model does not learn
# that from a few thousand bare answers, but it does learn to say what it sees and then to compare two words.

YesNo = tuple[str, str]


def is_there(colour: str, shape: str) -> str:
    return f"Is there {'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape} in the picture?"


def _existence(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    present = {(thing.colour, thing.shape) for thing in scene.things}
    if goal.truth:
        found = _allowed(sorted(present), goal)
    else:
        found = _allowed([pair for pair in COMBINATIONS if pair not in present], goal)
        # Half of the absent ones borrow a colour or a shape that is there.
        near = [pair for pair in found if any(pair[0] == c or pair[1] == s for c, s in present)]
        found = near if near and rng.random() < 0.5 else found
    if not found:
        return None
    colour, shape = pick(rng, found)
    # The asked thing; else one of its shape, else one of its colour, else the first.
    seen = min(scene.things, key=lambda thing: (thing.shape != shape, thing.colour != colour))
    return is_there(colour, shape), seen.name


def _shape_existence(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    found = [shape for shape in SHAPES if (_count(scene, shape) > 0) == goal.truth]
    shape = pick(rng, found)
    seen = min(scene.things, key=lambda thing: thing.shape != shape)
    return f"Is there a {shape} in the picture?", seen.shape


def _other(values: Iterable[Item], right: Item, truth: bool, rng: Generator) -> Item:
    """The right value or, if the answer is to be no, another one. Right values are uniform, so asked ones are too."""
    return right if truth else pick(rng, [value for value in values if value != right])


def _how_many(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    if len(scene.things) != goal.number + 1:
        return None
    number = _other(range(1, MAX_THINGS + 1), len(scene.things), goal.truth, rng)
    verb, noun = ("Is", "thing") if number == 1 else ("Are", "things")
    return f"{verb} there {NUMBERS[number]} {noun} in the picture?", NUMBERS[len(scene.things)]


def _shape_count(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    number = max(goal.number, 1)
    found = [shape for shape in SHAPES if _count(scene, shape) and (_count(scene, shape) == number) == goal.truth]
    if not found:
        return None
    shape = pick(rng, found)
    verb = "Is" if number == 1 else "Are"
    return f"{verb} there {NUMBERS[number]} {_plural(shape, number)} in the picture?", NUMBERS[_count(scene, shape)]


def _position(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    if not (found := _unique(scene)):
        return None
    thing, words = pick(rng, found)
    return f"Is the {words} at the {_other(POSITIONS, thing.position, goal.truth, rng)}?", thing.position


def _colour(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    asked = []
    for thing in scene.things:
        if _count(scene, thing.shape) == 1:
            pairs = [(colour, thing.shape) for colour in COLOURS if (colour == thing.colour) == goal.truth]
            asked += [(thing, pick(rng, found)[0])] if (found := _allowed(pairs, goal)) else []
    if not asked:
        return None
    thing, colour = pick(rng, asked)
    return f"Is the {thing.shape} {colour}?", thing.colour


def _attribute(scene: Scene, rng: Generator, goal: Goal, attribute: str, values: Sequence[str]) -> YesNo | None:
    # Settled by the goal: values that are more frequent would otherwise be asked about more often where they are true.
    value = values[goal.number % len(values)]
    found = [(thing, words) for thing, words in _unique(scene) if (getattr(thing, attribute) == value) == goal.truth]
    if not found:
        return None
    thing, words = pick(rng, found)
    return f"Is the {words} {value}?", getattr(thing, attribute)


def _size(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    return _attribute(scene, rng, goal, "size", SIZES)


def _texture(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    return _attribute(scene, rng, goal, "texture", TEXTURES)


def _background(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    return f"Is the background {_other(BACKGROUNDS, scene.background, goal.truth, rng)}?", scene.background


RELATIONS: dict[str, Callable[[Thing, Thing], bool]] = {
    "left of": lambda a, b: a.column < b.column,
    "right of": lambda a, b: a.column > b.column,
    "above": lambda a, b: a.row < b.row,
    "below": lambda a, b: a.row > b.row,
}


def _ordered(scene: Scene, holds: Callable[[Thing, Thing], bool]) -> list[tuple[str, str]]:
    """The words for pairs of things of which a relation holds, and not the other way round."""
    found = _unique(scene)
    return [(a, b) for first, a in found for second, b in found if holds(first, second)]


def _swapped(pairs: Sequence[tuple[str, str]], rng: Generator, goal: Goal) -> tuple[str, str] | None:
    """One of the pairs, turned round if the answer is to be no."""
    if not pairs:
        return None
    first, second = pick(rng, pairs)
    return (first, second) if goal.truth else (second, first)


def _relation(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    relation = pick(rng, tuple(RELATIONS))
    pair = _swapped(_ordered(scene, RELATIONS[relation]), rng, goal)
    if not pair:
        return None
    called = {words: thing for thing, words in _unique(scene)}
    seen = [word for word, holds in RELATIONS.items() if holds(called[pair[0]], called[pair[1]])]
    return f"Is the {pair[0]} {relation} the {pair[1]}?", ", ".join(seen)


def _larger(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    word, size = pick(rng, (("larger", "large"), ("smaller", "small")))
    pair = _swapped(_ordered(scene, lambda a, b: a.size == size != b.size), rng, goal)
    return pair and (f"Is the {pair[0]} {word} than the {pair[1]}?", pair[0] if goal.truth else pair[1])


def _more(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    counts = {thing.shape: _count(scene, thing.shape) for thing in scene.things}
    pair = _swapped([(a, b) for a in counts for b in counts if counts[a] > counts[b]], rng, goal)
    if not pair:
        return None
    first, second = map(_plural, pair)
    return f"Are there more {first} than {second} in the picture?", first if goal.truth else second


def _same_colour(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    single = [thing for thing in scene.things if _count(scene, thing.shape) == 1]
    pairs = [(a, b) for a in single for b in single if a is not b and (a.colour == b.colour) == goal.truth]
    if not pairs:
        return None
    first, second = pick(rng, pairs)
    return f"Are the {first.shape} and the {second.shape} the same color?", f"{first.colour}, {second.colour}"


def _arithmetic(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    if len(scene.things) != goal.number + 1:
        return None
    change, step = pick(rng, CHANGES)
    number = step + _other(range(1, MAX_THINGS + 1), len(scene.things), goal.truth, rng)
    verb, noun = ("is", "thing") if number == 1 else ("are", "things")
    seen = NUMBERS[len(scene.things) + step]
    return f"If one thing is {change}, {verb} there {NUMBERS[number]} {noun} in the picture?", seen


# Multiple choice: the words, the right answer, three distractors.

Choice = tuple[str, str, Sequence[str]]


def _which_object(scene: Scene, rng: Generator, goal: Goal) -> Choice | None:
    present = sorted({(thing.colour, thing.shape) for thing in scene.things})
    if not (found := _allowed(present, goal)):
        return None
    answer = pick(rng, found)
    wrong = _distractors(rng, answer, [pair for pair in COMBINATIONS if pair not in present], goal)
    return (
        None
        if wrong is None
        else ("Which of these is in the picture?", " ".join(answer), [" ".join(pair) for pair in wrong])
    )


def _which_colour(scene: Scene, rng: Generator, goal: Goal) -> Choice | None:
    pairs = [(thing.colour, thing.shape) for thing in scene.things if _count(scene, thing.shape) == 1]
    if not (found := _allowed(pairs, goal)):
        return None
    colour, shape = pick(rng, found)
    wrong = _distractors(rng, (colour, shape), [(other, shape) for other in COLOURS if other != colour], goal)
    return None if wrong is None else (f"What color is the {shape}?", colour, [other for other, _ in wrong])


def _which_shape(scene: Scene, rng: Generator, goal: Goal) -> Choice | None:
    colours = [thing.colour for thing in scene.things]
    pairs = [(thing.colour, thing.shape) for thing in scene.things if colours.count(thing.colour) == 1]
    if not (found := _allowed(pairs, goal)):
        return None
    colour, shape = pick(rng, found)
    wrong = _distractors(rng, (colour, shape), [(colour, other) for other in SHAPES if other != shape], goal)
    return None if wrong is None else (f"What shape is the {colour} thing?", shape, [other for _, other in wrong])


def _which_position(scene: Scene, rng: Generator, goal: Goal) -> Choice | None:
    if not (found := _unique(scene)):
        return None
    thing, words = pick(rng, found)
    wrong = sample(rng, [place for place in POSITIONS if place != thing.position], 3)
    return f"Where is the {words}?", thing.position, wrong


def _which_total(scene: Scene, rng: Generator, goal: Goal) -> Choice | None:
    if len(scene.things) != goal.number + 1:
        return None
    answer = NUMBERS[len(scene.things)]
    return "How many things are in the picture?", answer, [word for word in NUMBERS[1:5] if word != answer]


def _which_count(scene: Scene, rng: Generator, goal: Goal) -> Choice | None:
    if not (found := [shape for shape in SHAPES if _count(scene, shape) == goal.number]):
        return None
    answer = NUMBERS[goal.number]
    asked = f"How many {_plural(pick(rng, found))} are in the picture?"
    return asked, answer, [word for word in NUMBERS[:4] if word != answer]


def _which_background(scene: Scene, rng: Generator, goal: Goal) -> Choice | None:
    wrong = [background for background in BACKGROUNDS if background != scene.background]
    return "What color is the background?", scene.background, wrong


def _which_relation(scene: Scene, rng: Generator, goal: Goal) -> Choice | None:
    """Only things of the same row or column, so that one direction alone is right."""
    directions = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}
    answer = pick(rng, tuple(directions))

    def lies(first: Thing, second: Thing) -> bool:
        return (np.sign(first.row - second.row), np.sign(first.column - second.column)) == directions[answer]

    if not (pairs := _ordered(scene, lies)):
        return None
    first, second = pick(rng, pairs)
    wrong = [direction for direction in directions if direction != answer]
    return f"Where is the {first} from the {second}?", answer, wrong


def _which_attribute(scene: Scene, rng: Generator, goal: Goal) -> Choice | None:
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
        wrong = _distractors(rng, answer, absent, goal, count=2)
    elif goal.held_out or answer in HELD_OUT:
        wrong = None
    else:
        wrong = sample(rng, [pair for pair in COMBINATIONS if pair not in having | lacking | HELD_OUT], 2)
    return (
        None
        if wrong is None
        else (f"Which thing is {word}?", " ".join(answer), [" ".join(pair) for pair in (present, *wrong)])
    )


def _which_sum(scene: Scene, rng: Generator, goal: Goal) -> Choice | None:
    if len(scene.things) != goal.number + 1:
        return None
    change, step = pick(rng, CHANGES)
    answer = NUMBERS[len(scene.things) + step]
    wrong = [word for word in NUMBERS[1 + step : 5 + step] if word != answer]
    return f"If one thing is {change}, how many things are in the picture?", answer, wrong


@dataclass(frozen=True)
class Kind:
    """A kind of question: what it asks about, its function, and its share of the tuning questions."""

    category: str
    share: int
    yes_no: Callable[[Scene, Generator, Goal], YesNo | None] | None = None
    choice: Callable[[Scene, Generator, Goal], Choice | None] | None = None


KINDS = {
    "existence": Kind("existence", 6, yes_no=_existence),
    "shape_existence": Kind("existence", 5, yes_no=_shape_existence),
    "how_many": Kind("count", 4, yes_no=_how_many),
    "shape_count": Kind("count", 2, yes_no=_shape_count),
    "position": Kind("position", 4, yes_no=_position),
    "colour": Kind("colour", 6, yes_no=_colour),
    "size": Kind("attribute", 1, yes_no=_size),
    "texture": Kind("attribute", 1, yes_no=_texture),
    "background": Kind("scene", 1, yes_no=_background),
    "relation": Kind("relation", 1, yes_no=_relation),
    "larger": Kind("comparison", 1, yes_no=_larger),
    "more": Kind("comparison", 1, yes_no=_more),
    "same_colour": Kind("comparison", 1, yes_no=_same_colour),
    "arithmetic": Kind("reasoning", 1, yes_no=_arithmetic),
    "which_object": Kind("existence", 3, choice=_which_object),
    "which_colour": Kind("colour", 3, choice=_which_colour),
    "which_shape": Kind("shape", 3, choice=_which_shape),
    "which_position": Kind("position", 3, choice=_which_position),
    "which_total": Kind("count", 2, choice=_which_total),
    "which_count": Kind("count", 1, choice=_which_count),
    "which_background": Kind("scene", 1, choice=_which_background),
    "which_relation": Kind("relation", 1, choice=_which_relation),
    "which_attribute": Kind("comparison", 1, choice=_which_attribute),
    "which_sum": Kind("reasoning", 1, choice=_which_sum),
}
YES_NO_KINDS = tuple(name for name, kind in KINDS.items() if kind.yes_no)
CHOICE_KINDS = tuple(name for name, kind in KINDS.items() if kind.choice)
# As often as its share says.
MIX = tuple(name for name, kind in KINDS.items() for _ in range(kind.share))
YES_NO_MIX = tuple(name for name in MIX if KINDS[name].yes_no)
