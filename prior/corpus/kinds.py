"""The kinds of questions about a scene: what each asks about, its function, how often it is asked in tuning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from numpy.random import Generator

from prior.corpus import choices, yes_no
from prior.corpus.goals import Goal
from prior.corpus.world import Scene


@dataclass(frozen=True)
class Kind:
    """A kind of question: what it asks about, its function, and its share of the tuning questions."""

    category: str
    share: int
    yes_no: Callable[[Scene, Generator, Goal], yes_no.YesNo | None] | None = None
    choice: Callable[[Scene, Generator, Goal], choices.Choice | None] | None = None


KINDS = {
    "existence": Kind("existence", 6, yes_no=yes_no.existence),
    "shape_existence": Kind("existence", 5, yes_no=yes_no.shape_existence),
    "how_many": Kind("count", 4, yes_no=yes_no.how_many),
    "shape_count": Kind("count", 2, yes_no=yes_no.shape_count),
    "position": Kind("position", 4, yes_no=yes_no.position),
    "colour": Kind("colour", 6, yes_no=yes_no.colour),
    "size": Kind("attribute", 1, yes_no=yes_no.size),
    "texture": Kind("attribute", 1, yes_no=yes_no.texture),
    "background": Kind("scene", 1, yes_no=yes_no.background),
    "relation": Kind("relation", 1, yes_no=yes_no.relation),
    "larger": Kind("comparison", 1, yes_no=yes_no.larger),
    "more": Kind("comparison", 1, yes_no=yes_no.more),
    "same_colour": Kind("comparison", 1, yes_no=yes_no.same_colour),
    "arithmetic": Kind("reasoning", 1, yes_no=yes_no.arithmetic),
    "which_object": Kind("existence", 3, choice=choices.which_object),
    "which_colour": Kind("colour", 3, choice=choices.which_colour),
    "which_shape": Kind("shape", 3, choice=choices.which_shape),
    "which_position": Kind("position", 3, choice=choices.which_position),
    "which_total": Kind("count", 2, choice=choices.which_total),
    "which_count": Kind("count", 1, choice=choices.which_count),
    "which_background": Kind("scene", 1, choice=choices.which_background),
    "which_relation": Kind("relation", 1, choice=choices.which_relation),
    "which_attribute": Kind("comparison", 1, choice=choices.which_attribute),
    "which_sum": Kind("reasoning", 1, choice=choices.which_sum),
}
YES_NO_KINDS = tuple(name for name, kind in KINDS.items() if kind.yes_no)
CHOICE_KINDS = tuple(name for name, kind in KINDS.items() if kind.choice)
# As often as its share says.
MIX = tuple(name for name, kind in KINDS.items() for _ in range(kind.share))
YES_NO_MIX = tuple(name for name in MIX if KINDS[name].yes_no)
