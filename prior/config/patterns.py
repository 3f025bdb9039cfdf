"""Patterns of file names, with braces as in a shell."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")


def expand(pattern: str) -> list[str]:
    """The file names that a pattern stands for, in its order.

    Parameters
    ----------
    pattern
        Names between commas. Braces in a name hold a range, ``{0000..0599}`` (both ends belong to it; a leading zero
        pads all numbers to one width), or names between commas, ``{train,val}``, as in a shell.

    Raises
    ------
    ValueError
        If braces are open, nested or empty, a range goes down, or a name is empty or there twice.
    """
    # A comma parts names unless it stands in braces: the next brace after it would be a closing one.
    names = [name for part in re.split(r",(?![^{}]*\})", pattern) for name in _expand_name(part.strip(), pattern)]
    for name in names:
        if not name:
            raise _malformed(pattern, "a name is empty")
    if len(set(names)) < len(names):
        raise _malformed(pattern, "a name is there twice")
    return names


def _expand_name(name: str, pattern: str) -> Iterator[str]:
    # Split by a pattern with one group: texts at even places, the insides of braces at odd ones.
    pieces = _BRACES.split(name)
    if any(brace in piece for brace in "{}" for piece in pieces[::2]):
        raise _malformed(pattern, "a brace has no partner")
    choices = [_choices(piece, pattern) if place % 2 else [piece] for place, piece in enumerate(pieces)]
    return map("".join, itertools.product(*choices))


def _choices(inside: str, pattern: str) -> Sequence[str]:
    """What a pair of braces stands for."""
    if ends := _RANGE.fullmatch(inside):
        first, last = ends.groups()
        if int(first) > int(last):
            raise _malformed(pattern, f"the range {{{inside}}} goes down")
        padded = any(len(end) > 1 and end[0] == "0" for end in (first, last))
        width = max(len(first), len(last)) if padded else 0
        return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    names = inside.split(",")
    if ".." in inside or len(names) == 1 or not all(names):
        raise _malformed(pattern, f"{{{inside}}} is neither a range of numbers nor names between commas")
    return names


def _malformed(pattern: str, why: str) -> ValueError:
    return ValueError(f"'{pattern}': {why}; write file names as in 'shard-{{0000..0599}}.tar' or 'a.tar,b.tar'")
