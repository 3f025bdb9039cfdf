"""Captions in the manner of web alt-text: what the picture shows, between words that it does not decide.

A caption is built from classified pieces, so that its image-related spans are exact by construction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from numpy.random import Generator

from prior.corpus.phrases import CREDITS, LEADS, MONTHS, NOTICES, NUMBERS, OFFERS, SIDES, STREETS, SYLLABLES, WORKS
from prior.corpus.world import SALIENCE, Scene, Thing, pick

# Share of caption words that human annotators found directly related to the image (PRIOR, arXiv 2505.08971).
HUMAN_SHARE = 0.313

WordClass = Literal["visual", "function", "stock", "name", "number"]
Piece = tuple[str, WordClass]


def classified_caption(scene: Scene, rng: Generator) -> list[Piece]:
    """The words of a caption in order, each a (word, class) pair; punctuation is a word of its own.

    `visual` words are decided by the picture; of the others `function` and `stock` words are predictable,
    `name` and `number` words are not.
    """
    return pick(rng, TEMPLATES)(scene, rng)


def join(pieces: list[Piece]) -> tuple[str, list[list[int]]]:
    """The caption of classified words, and the [start, end) character span of each visual one."""
    text, spans = "", []
    for word, kind in pieces:
        text += " " if text and word not in (",", ":") else ""
        if kind == "visual":
            spans.append([len(text), len(text) + len(word)])
        text += word
    return text, spans


def _words(text: str, kind: WordClass) -> list[Piece]:
    return [(word, kind) for word in text.split()]


def _function(text: str) -> list[Piece]:
    return _words(text, "function")


def _name(rng: Generator, words: int = 1) -> list[Piece]:
    made = ("".join(pick(rng, SYLLABLES) for _ in range(2 + (rng.random() < 0.5))) for _ in range(words))
    return [(name.capitalize(), "name") for name in made]


def _number(rng: Generator, low: int, high: int) -> list[Piece]:
    return [(str(low + int(rng.random() * (high - low))), "number")]


def _article(pieces: list[Piece]) -> list[Piece]:
    return [("an" if pieces[0][0][0] in "aeiou" else "a", "function"), *pieces]


def _plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


# What the picture decides.


def _thing(thing: Thing, rng: Generator) -> list[Piece]:
    adjectives = [thing.size] if rng.random() < 0.8 else []
    adjectives += [thing.texture] if rng.random() < (0.3 if thing.texture == "plain" else 0.9) else []
    return _article(_words(" ".join([*adjectives, thing.colour, thing.shape]), "visual"))


def _place(thing: Thing, rng: Generator) -> list[Piece]:
    return _function(pick(rng, ("at the", "at the", "in the"))) + _words(thing.position, "visual")


def _mentions(scene: Scene, rng: Generator, most: int = 3) -> list[Thing]:
    """Up to three things of a scene, the salient ones first in line."""
    count = min(len(scene.things), most, pick(rng, (2, 3, 3, 3)))
    key = {thing: rng.random() ** (1 / (SALIENCE[thing.colour] * SALIENCE[thing.shape])) for thing in scene.things}
    return sorted(scene.things, key=lambda thing: -key[thing])[:count]


def _phrase(thing: Thing, scene: Scene, rng: Generator, place: float) -> list[Piece]:
    """One thing, or all those of its name; with its place at the given probability."""
    same = sum(other.name == thing.name for other in scene.things)
    if same > 1:
        return _words(f"{NUMBERS[same]} {thing.colour} {_plural(thing.shape)}", "visual")
    return _thing(thing, rng) + (_place(thing, rng) if rng.random() < place else [])


def _objects(scene: Scene, rng: Generator, most: int = 3, place: float = 0.9) -> list[Piece]:
    phrases = [_phrase(thing, scene, rng, place) for thing in _mentions(scene, rng, most)]
    unique = [phrase for at, phrase in enumerate(phrases) if phrase not in phrases[:at]]
    pieces: list[Piece] = []
    for at, phrase in enumerate(unique):
        if at:
            pieces += _function(pick(rng, ("and", "and", "with", ",")))
        pieces += phrase
    return pieces


def _background(scene: Scene, rng: Generator, chance: float = 0.85) -> list[Piece]:
    if rng.random() >= chance:
        return []
    colour: Piece = (scene.background, "visual")
    return [*_function(pick(rng, ("on a", "against a", "over a"))), colour, ("background", "function")]


def _count(scene: Scene, rng: Generator) -> list[Piece]:
    """How many things there are, or how many of a shape that repeats."""
    shapes = [thing.shape for thing in scene.things]
    repeated = sorted({shape for shape in shapes if shapes.count(shape) > 1})
    if repeated and rng.random() < 0.5:
        shape = pick(rng, repeated)
        return _words(f"{NUMBERS[shapes.count(shape)]} {_plural(shape)}", "visual")
    return [(NUMBERS[len(shapes)], "visual"), ("thing" if len(shapes) == 1 else "things", "function")]


def _relation(scene: Scene, rng: Generator) -> list[Piece] | None:
    """Two things and how they lie to one another; None if there is only one thing, or one with a double."""
    names = [thing.name for thing in scene.things]
    things = [thing for thing in _mentions(scene, rng, 2) if names.count(thing.name) == 1]
    if len(things) < 2:
        return None
    first, second = things
    words = []
    if first.column != second.column:
        words.append(_words("left" if first.column < second.column else "right", "visual") + _function("of"))
    if first.row != second.row:
        words.append(_words("above" if first.row < second.row else "below", "visual"))
    return _thing(first, rng) + pick(rng, words) + _thing(second, rng)


# What it does not decide.


def _date(rng: Generator) -> list[Piece]:
    day = _number(rng, 1, 29) + [(pick(rng, MONTHS), "number")]
    return (day if rng.random() < 0.5 else []) + _number(rng, 1995, 2024)


def _price(rng: Generator) -> list[Piece]:
    amount = f"${1 + int(rng.random() * 99)}.{pick(rng, ('00', '50', '95', '99'))}"
    return _function(pick(rng, ("only", "for", "price", "from", "sale"))) + [(amount, "number")]


def _address(rng: Generator) -> list[Piece]:
    return [*_number(rng, 1, 400), *_name(rng), (pick(rng, STREETS), "name"), (",", "function"), *_name(rng)]


def _team(rng: Generator) -> list[Piece]:
    return [*_name(rng), (pick(rng, SIDES), "name")]


def _score(rng: Generator) -> list[Piece]:
    return [(f"{int(rng.random() * 6)}-{int(rng.random() * 6)}", "number")]


def _credit(rng: Generator) -> list[Piece]:
    return _words(pick(rng, CREDITS), "stock") + _name(rng, 2)


def _notice(rng: Generator) -> list[Piece]:
    return _words(pick(rng, NOTICES), "stock")


def _offer(rng: Generator) -> list[Piece]:
    return _words(pick(rng, OFFERS), "stock")


def _rights(rng: Generator) -> list[Piece]:
    return [("©", "stock"), *_number(rng, 1995, 2024), *_name(rng), *_words(pick(rng, NOTICES[:3]), "stock")]


def _match(rng: Generator) -> list[Piece]:
    verb = pick(rng, ("beat", "play", "against", "visit", "meet"))
    return _team(rng) + _function(verb) + _team(rng) + (_score(rng) if rng.random() < 0.6 else [])


def _venue(rng: Generator) -> list[Piece]:
    return _function("at") + _address(rng)


TAILS: tuple[Callable[[Generator], list[Piece]], ...] = (
    _credit,
    _notice,
    _offer,
    _rights,
    _price,
    _venue,
    _date,
    _match,
    _offer,
    _notice,
)


def _tails(rng: Generator, least: int) -> list[Piece]:
    """Different clauses that the picture does not decide, each after a mark; sometimes one more than `least`."""
    count = least + (rng.random() < 0.35)
    pieces: list[Piece] = []
    seen: list[Callable[[Generator], list[Piece]]] = []
    while len(seen) < count:
        tail = pick(rng, TAILS)
        if tail not in seen:
            seen.append(tail)
            pieces += _function(pick(rng, (",", ",", ",", "|", "-"))) + tail(rng)
    return pieces


# Sentence templates.


def _stock(scene: Scene, rng: Generator) -> list[Piece]:
    lead = _words(pick(rng, LEADS), "stock")
    return lead + _objects(scene, rng) + _background(scene, rng) + _tails(rng, 2)


def _shop(scene: Scene, rng: Generator) -> list[Piece]:
    item = _name(rng) + [(pick(rng, WORKS), "stock"), ("with", "function")]
    return item + _objects(scene, rng) + _background(scene, rng) + _function(",") + _price(rng) + _tails(rng, 1)


def _news(scene: Scene, rng: Generator) -> list[Piece]:
    place = _name(rng) + _function("news ,") + _date(rng) + _function(":")
    return (
        place + _objects(scene, rng, place=0.85) + _function(pick(rng, ("seen at", "near", "outside"))) + _address(rng)
    )


def _game(scene: Scene, rng: Generator) -> list[Piece]:
    shown = _function(pick(rng, ("fans show", "banner with", "flag with", "badge with")))
    return _match(rng) + _function(":") + shown + _objects(scene, rng) + _background(scene, rng) + _tails(rng, 1)


def _set(scene: Scene, rng: Generator) -> list[Piece]:
    lead = _words(pick(rng, ("set of", "collection of", "group of", "pack of")), "stock") + _count(scene, rng)
    shown = _function(pick(rng, ("with", "including", "such as"))) + _objects(scene, rng, 2)
    return lead + shown + _background(scene, rng) + _tails(rng, 2)


def _where(scene: Scene, rng: Generator) -> list[Piece]:
    first, *others = _mentions(scene, rng)
    seen = _function(pick(rng, ("there is", "you can see", "we see", ":")))
    shown = _place(first, rng) + seen + _thing(first, rng)
    for thing in others[:1]:
        shown += _function("and") + _place(thing, rng) + _thing(thing, rng)
    return shown + _background(scene, rng) + _tails(rng, 2)


def _beside(scene: Scene, rng: Generator) -> list[Piece]:
    lead = _words(pick(rng, LEADS), "stock")
    shown = _relation(scene, rng) or _objects(scene, rng, place=0.8)
    return lead + shown + _background(scene, rng, 0.5) + _tails(rng, 2)


def _signed(scene: Scene, rng: Generator) -> list[Piece]:
    title = _name(rng, 2) + _words(pick(rng, ("studio", "gallery", "archive", "museum", "collection")), "stock")
    return title + _function(":") + _objects(scene, rng, place=0.85) + _background(scene, rng) + _tails(rng, 2)


def _listing(scene: Scene, rng: Generator) -> list[Piece]:
    item = _words(pick(rng, ("item no", "lot no", "photo no", "image id")), "stock") + _number(rng, 100, 9999)
    return item + _function(":") + _objects(scene, rng) + _background(scene, rng) + _tails(rng, 2)


def _late(scene: Scene, rng: Generator) -> list[Piece]:
    """The picture comes last, after the words that it does not decide."""
    first = _offer(rng) + _function(":") + _words(pick(rng, LEADS), "stock")
    return first + _objects(scene, rng) + _background(scene, rng, 0.5) + _function("from") + _team(rng)


TEMPLATES: tuple[Callable[[Scene, Generator], list[Piece]], ...] = (
    _stock,
    _shop,
    _news,
    _game,
    _set,
    _where,
    _beside,
    _signed,
    _listing,
    _late,
)
