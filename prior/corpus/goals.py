"""What a question about a scene is to be: its goal, settled before the scene, and what any kind of question looks up.

Everything that the goal leaves open is drawn symmetrically, so that words and options tell nothing of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from numpy.random import Generator

from prior.corpus.world import CELLS, COLUMNS, HELD_OUT, ROWS, Scene, Thing, pick, sample

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


def unique(scene: Scene) -> list[tuple[Thing, str]]:
    """The things that words single out, with these words."""
    found = []
    for thing in scene.things:
        if sum(other.name == thing.name for other in scene.things) == 1:
            found.append((thing, thing.name))
        if sum(other.shape == thing.shape for other in scene.things) == 1:
            found.append((thing, thing.shape))
    return found


def count(scene: Scene, shape: str) -> int:
    return sum(thing.shape == shape for thing in scene.things)


def plural(shape: str, count: int = 2) -> str:
    return shape if count == 1 else shape + ("es" if shape == "cross" else "s")


def allowed(pairs: Sequence[tuple[str, str]], goal: Goal) -> list[tuple[str, str]]:
    """The combinations that are held out, or that are not, as the goal says."""
    return [pair for pair in pairs if (pair in HELD_OUT) == bool(goal.held_out)]


def distractors(
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


def ordered(scene: Scene, holds: Callable[[Thing, Thing], bool]) -> list[tuple[str, str]]:
    """The words for pairs of things of which a relation holds, and not the other way round."""
    found = unique(scene)
    return [(a, b) for first, a in found for second, b in found if holds(first, second)]
