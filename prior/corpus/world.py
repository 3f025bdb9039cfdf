"""The generated world: what a scene is, how one is drawn from a seed, and how it is rendered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")

SPLITS = {"train": 0, "val": 1, "text_only": 2}
SHAPES = ("circle", "square", "triangle", "cross", "star")
COLOURS = {
    "red": (220, 25, 30),
    "yellow": (245, 225, 30),
    "green": (25, 150, 50),
    "cyan": (40, 200, 215),
    "blue": (35, 60, 215),
    "purple": (135, 40, 165),
}
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
# All light: a thing is then darker than its background in some channel whatever its colour, and its outline can be told
# by a small model.
BACKGROUNDS = {"white": (245, 245, 245), "gray": (190, 190, 190), "beige": (225, 212, 180), "rose": (240, 200, 205)}
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
CELLS = tuple(product(range(3), range(3)))
MAX_THINGS = 4
# How often a scene has 1, 2, … things. Scenes of one thing name what they show without a choice: in a few thousand
# captions a small model learns words from these, and from the others which word belongs to which thing.
THINGS = (0.45, 0.3, 0.15, 0.1)

# One combination of each colour that no training picture and no text shows.
HELD_OUT = frozenset(
    {
        ("red", "star"),
        ("yellow", "circle"),
        ("green", "cross"),
        ("cyan", "triangle"),
        ("blue", "square"),
        ("purple", "circle"),
    }
)
COMBINATIONS = tuple(product(COLOURS, SHAPES))
SEEN = tuple(pair for pair in COMBINATIONS if pair not in HELD_OUT)

# Reporting bias: every combination is drawn equally often, but captions prefer to mention some. So a question cannot be
# guessed from how often things occur, and yet there are "popular" objects that a caption model is tempted to see.
SALIENCE = {"circle": 3, "star": 3, "square": 2, "triangle": 2, "cross": 1}
SALIENCE |= {"red": 3, "blue": 3, "yellow": 2, "green": 2, "cyan": 1, "purple": 1}
POPULAR = tuple(sorted(SEEN, key=lambda pair: (-SALIENCE[pair[0]] * SALIENCE[pair[1]], pair))[:8])


@dataclass(frozen=True)
class Thing:
    """One object of a scene; `row` and `column` are 0 to 2, from the top left."""

    shape: str
    colour: str
    size: str
    texture: str
    row: int
    column: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def position(self) -> str:
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"

    @property
    def held_out(self) -> bool:
        return (self.colour, self.shape) in HELD_OUT


@dataclass(frozen=True)
class Scene:
    """One to four things in different cells of a 3x3 grid, in reading order, on one background."""

    things: tuple[Thing, ...]
    background: str


def generator(split: str, index: int, seed: int) -> np.random.Generator:
    """The random numbers of one item: a function of (seed, split, index) alone, so that any range can be a shard."""
    return np.random.default_rng([seed, SPLITS[split], index])


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """One item, uniformly. (`Generator.choice` would take thirty times as long.)"""
    return items[int(rng.random() * len(items))]


def sample(rng: np.random.Generator, items: Sequence[Item], count: int) -> list[Item]:
    """`count` different items in random order."""
    left = list(items)
    return [left.pop(int(rng.random() * len(left))) for _ in range(count)]


@lru_cache(maxsize=65536)
def scene(split: str, index: int, seed: int) -> Scene:
    """The scene of one item, the same as the one that `prior.corpus.scenes.pair` shows."""
    return draw(split, generator(split, index, seed))


def draw(split: str, rng: np.random.Generator) -> Scene:
    """Draw a scene: cells and attributes are uniform; shapes and colours sometimes repeat."""
    pairs: list[tuple[str, str]] = []
    allowed = COMBINATIONS if split == "val" else SEEN
    for position in range(1 + int(np.searchsorted(np.cumsum(THINGS), rng.random()))):
        if position == 0:
            pairs.append(pick(rng, allowed))
            continue
        colour, shape = pick(rng, pairs)
        repeat = rng.random()
        if repeat < 0.15:
            pairs.append((colour, shape))
        elif repeat < 0.35:
            pairs.append(pick(rng, [pair for pair in allowed if pair[1] == shape]))
        elif repeat < 0.5:
            pairs.append(pick(rng, [pair for pair in allowed if pair[0] == colour]))
        else:
            pairs.append(pick(rng, allowed))
    cells = sample(rng, CELLS, len(pairs))
    things = [
        Thing(shape, colour, pick(rng, SIZES), pick(rng, ("plain", *TEXTURES)), *cell)
        for (colour, shape), cell in zip(pairs, cells, strict=True)
    ]
    return Scene(tuple(sorted(things, key=lambda thing: (thing.row, thing.column))), pick(rng, tuple(BACKGROUNDS)))


def render(scene: Scene, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Render a scene.

    Parameters
    ----------
    scene
        What to show.
    size
        Side of the picture in pixels; a cell is a third of it.
    rng
        Source of the jitter (a thing stays inside its cell), of the brightness (0.85 to 1.05) and of the pixel noise.

    Returns
    -------
    Array of shape (size, size, 3), RGB.
    """
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = BACKGROUNDS[scene.background]
    cell = size / 3
    for thing in scene.things:
        mask, paint = _stamp(thing.shape, thing.colour, thing.texture, _diameter(thing.size, size))
        side = mask.shape[0]
        slack = (cell - side) / 2
        jitter = min(slack, cell / 8)
        top = round(thing.row * cell + slack + jitter * (2 * rng.random() - 1))
        left = round(thing.column * cell + slack + jitter * (2 * rng.random() - 1))
        window = canvas[top : top + side, left : left + side]
        window += mask * (paint - window)
    canvas *= 0.85 + 0.2 * rng.random()
    # The same noise in the three channels: half the bytes of a PNG with independent noise.
    canvas += rng.integers(-6, 7, (size, size, 1), dtype=np.int8)
    return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)


def _diameter(size: str, picture: int) -> int:
    return max(3, round(picture / 3 * (0.94 if size == "large" else 0.7)))


@cache
def _stamp(shape: str, colour: str, texture: str, side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The anti-aliased mask (side, side, 1) of a shape and its textured colour (side, side, 3)."""
    fine = 8
    line = (np.arange(side * fine) + 0.5) / (side * fine / 2) - 1
    x, y = np.meshgrid(line, line)
    inside = _inside(shape, x, y).astype(np.float32)
    mask = inside.reshape(side, fine, side, fine).mean((1, 3))[..., None]
    row, column = np.mgrid[:side, :side]
    stripe, dot = max(2, round(side / 4.5)), max(1, round(side / 6))
    middle = (side - dot) // 2
    painted = {
        "plain": np.zeros((side, side), bool),
        "striped": (row + side // 2) % (2 * stripe) < stripe,
        "dotted": ((row - middle) % (2 * dot) < dot) & ((column - middle) % (2 * dot) < dot),
    }[texture]
    if texture == "dotted":
        # A closed outline: on a light background, dots at the rim would change the shape.
        solid = np.pad(mask[..., 0] > 0.5, 1)
        painted &= solid[2:, 1:-1] & solid[:-2, 1:-1] & solid[1:-1, 2:] & solid[1:-1, :-2]
    # Stripes are darker and dots lighter than the colour, so that neither changes which colour it is.
    base = np.asarray(COLOURS[colour], np.float32)
    other = base * 0.45 if texture == "striped" else base * 0.2 + 255 * 0.8
    return mask, np.where(painted[..., None], other, base).astype(np.float32)


def _inside(shape: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points of the square [-1, 1] x [-1, 1], y downwards, belong to a shape."""
    if shape == "circle":
        return x**2 + y**2 <= 1
    if shape == "square":
        return (abs(x) <= 0.88) & (abs(y) <= 0.88)
    if shape == "triangle":
        return (abs(x) <= (y + 1) / 2) & (y <= 0.85)
    if shape == "cross":
        return (abs(x) <= 0.32) | (abs(y) <= 0.32)
    # A star of five rays: the polygon's edges in the sector between a tip and the notch beside it.
    angle = np.abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    radius = np.hypot(x, y)
    notch = 0.42
    px, py = notch * np.cos(np.pi / 5), notch * np.sin(np.pi / 5)
    return radius * (np.cos(angle) * py + np.sin(angle) * (1 - px)) <= py
