"""Yes/no questions: the words of a question to which the goal's truth is the answer, and the evidence for it.

A function of a kind returns None where the scene does not allow the question. The evidence is what is seen where the
question looks.

Our choice, not the paper's: models are taught to say the evidence first ("blue: No"). Whether a word of the question
fits the picture depends on both at once, and neither alone tells anything of the answer; a tiny model does not learn
that from a few thousand bare answers, but it does learn to say what it sees and then to compare two words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from numpy.random import Generator

from prior.corpus.goals import CHANGES, POSITIONS, Goal, allowed, count, ordered, plural, unique
from prior.corpus.phrases import NUMBERS
from prior.corpus.world import (
    BACKGROUNDS,
    COLOURS,
    COMBINATIONS,
    MAX_THINGS,
    SHAPES,
    SIZES,
    TEXTURES,
    Item,
    Scene,
    Thing,
    pick,
)

YesNo = tuple[str, str]


def is_there(colour: str, shape: str) -> str:
    return f"Is there {'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape} in the picture?"


def existence(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    present = {(thing.colour, thing.shape) for thing in scene.things}
    if goal.truth:
        found = allowed(sorted(present), goal)
    else:
        found = allowed([pair for pair in COMBINATIONS if pair not in present], goal)
        # Half of the absent ones borrow a colour or a shape that is there.
        near = [pair for pair in found if any(pair[0] == c or pair[1] == s for c, s in present)]
        found = near if near and rng.random() < 0.5 else found
    if not found:
        return None
    colour, shape = pick(rng, found)
    # The asked thing; else one of its shape, else one of its colour, else the first.
    seen = min(scene.things, key=lambda thing: (thing.shape != shape, thing.colour != colour))
    return is_there(colour, shape), seen.name


def shape_existence(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    found = [shape for shape in SHAPES if (count(scene, shape) > 0) == goal.truth]
    shape = pick(rng, found)
    seen = min(scene.things, key=lambda thing: thing.shape != shape)
    return f"Is there a {shape} in the picture?", seen.shape


def _other(values: Iterable[Item], right: Item, truth: bool, rng: Generator) -> Item:
    """The right value or, if the answer is to be no, another one. Right values are uniform, so asked ones are too."""
    return right if truth else pick(rng, [value for value in values if value != right])


def how_many(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    if len(scene.things) != goal.number + 1:
        return None
    number = _other(range(1, MAX_THINGS + 1), len(scene.things), goal.truth, rng)
    verb, noun = ("Is", "thing") if number == 1 else ("Are", "things")
    return f"{verb} there {NUMBERS[number]} {noun} in the picture?", NUMBERS[len(scene.things)]


def shape_count(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    number = max(goal.number, 1)
    found = [shape for shape in SHAPES if count(scene, shape) and (count(scene, shape) == number) == goal.truth]
    if not found:
        return None
    shape = pick(rng, found)
    verb = "Is" if number == 1 else "Are"
    return f"{verb} there {NUMBERS[number]} {plural(shape, number)} in the picture?", NUMBERS[count(scene, shape)]


def position(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    if not (found := unique(scene)):
        return None
    thing, words = pick(rng, found)
    return f"Is the {words} at the {_other(POSITIONS, thing.position, goal.truth, rng)}?", thing.position


def colour(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    asked = []
    for thing in scene.things:
        if count(scene, thing.shape) == 1:
            pairs = [(colour, thing.shape) for colour in COLOURS if (colour == thing.colour) == goal.truth]
            asked += [(thing, pick(rng, found)[0])] if (found := allowed(pairs, goal)) else []
    if not asked:
        return None
    thing, colour = pick(rng, asked)
    return f"Is the {thing.shape} {colour}?", thing.colour


def _attribute(scene: Scene, rng: Generator, goal: Goal, attribute: str, values: Sequence[str]) -> YesNo | None:
    # Settled by the goal: values that are more frequent would otherwise be asked about more often where they are true.
    value = values[goal.number % len(values)]
    found = [(thing, words) for thing, words in unique(scene) if (getattr(thing, attribute) == value) == goal.truth]
    if not found:
        return None
    thing, words = pick(rng, found)
    return f"Is the {words} {value}?", getattr(thing, attribute)


def size(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    return _attribute(scene, rng, goal, "size", SIZES)


def texture(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    return _attribute(scene, rng, goal, "texture", TEXTURES)


def background(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    return f"Is the background {_other(BACKGROUNDS, scene.background, goal.truth, rng)}?", scene.background


RELATIONS: dict[str, Callable[[Thing, Thing], bool]] = {
    "left of": lambda a, b: a.column < b.column,
    "right of": lambda a, b: a.column > b.column,
    "above": lambda a, b: a.row < b.row,
    "below": lambda a, b: a.row > b.row,
}


def _swapped(pairs: Sequence[tuple[str, str]], rng: Generator, goal: Goal) -> tuple[str, str] | None:
    """One of the pairs, turned round if the answer is to be no."""
    if not pairs:
        return None
    first, second = pick(rng, pairs)
    return (first, second) if goal.truth else (second, first)


def relation(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    asked = pick(rng, tuple(RELATIONS))
    pair = _swapped(ordered(scene, RELATIONS[asked]), rng, goal)
    if not pair:
        return None
    called = {words: thing for thing, words in unique(scene)}
    seen = [word for word, holds in RELATIONS.items() if holds(called[pair[0]], called[pair[1]])]
    return f"Is the {pair[0]} {asked} the {pair[1]}?", ", ".join(seen)


def larger(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    word, size = pick(rng, (("larger", "large"), ("smaller", "small")))
    pair = _swapped(ordered(scene, lambda a, b: a.size == size != b.size), rng, goal)
    return pair and (f"Is the {pair[0]} {word} than the {pair[1]}?", pair[0] if goal.truth else pair[1])


def more(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    counts = {thing.shape: count(scene, thing.shape) for thing in scene.things}
    pair = _swapped([(a, b) for a in counts for b in counts if counts[a] > counts[b]], rng, goal)
    if not pair:
        return None
    first, second = map(plural, pair)
    return f"Are there more {first} than {second} in the picture?", first if goal.truth else second


def same_colour(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    single = [thing for thing in scene.things if count(scene, thing.shape) == 1]
    pairs = [(a, b) for a in single for b in single if a is not b and (a.colour == b.colour) == goal.truth]
    if not pairs:
        return None
    first, second = pick(rng, pairs)
    return f"Are the {first.shape} and the {second.shape} the same color?", f"{first.colour}, {second.colour}"


def arithmetic(scene: Scene, rng: Generator, goal: Goal) -> YesNo | None:
    if len(scene.things) != goal.number + 1:
        return None
    change, step = pick(rng, CHANGES)
    number = step + _other(range(1, MAX_THINGS + 1), len(scene.things), goal.truth, rng)
    verb, noun = ("is", "thing") if number == 1 else ("are", "things")
    seen = NUMBERS[len(scene.things) + step]
    return f"If one thing is {change}, {verb} there {NUMBERS[number]} {noun} in the picture?", seen
