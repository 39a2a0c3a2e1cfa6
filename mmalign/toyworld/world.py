"""What stands in each image of the toy world: a pure function of seed, split and number.

Every shape has a texture of its own, so that a tiny encoder can tell it; some shapes are frequent and some come in
pairs, so that a model has prejudices to fall for.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.random import Generator, default_rng

T = TypeVar("T")

VERSION = 1  # raise it when any image, text or truth changes: what was trained on the old one is then out of date

SIDE = 72  # pixels
SHAPES = {"circle": 0.26, "square": 0.20, "triangle": 0.17, "cross": 0.15, "ring": 0.12, "star": 0.10}  # frequencies
PAIRS = (("circle", "square"), ("triangle", "star"), ("cross", "ring"))
PARTNERS = {**dict(PAIRS), **{b: a for a, b in PAIRS}}
PARTNER = 0.4  # chance that a thing after the first has the first one's partner shape
COLORS = {
    "red": (214, 40, 40),
    "green": (38, 166, 66),
    "blue": (42, 82, 222),
    "yellow": (236, 212, 44),
    "purple": (150, 52, 196),
    "cyan": (44, 204, 212),
}
BACKGROUNDS = {"black": (18, 18, 18), "gray": (122, 122, 122), "white": (236, 236, 236)}
SIZES = {"small": (8.0, 9.5), "large": (14.0, 16.5)}  # radius in pixels, least and most
PLACES = ("top left", "top right", "bottom left", "bottom right")  # quadrants, row by row
MOST = 3  # things in an image


@dataclass(frozen=True)
class Thing:
    """One object: what it is, and where, in pixels."""

    shape: str
    color: str
    size: str
    place: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """The things in an image and the colour behind them."""

    things: tuple[Thing, ...]  # 1 to 3, each in its own quadrant
    background: str

    @property
    def shapes(self) -> set[str]:
        """Every shape that is there."""
        return {thing.shape for thing in self.things}


def stream(*key: str | int) -> Generator:
    """Random numbers that belong to a key: the same for the same words and numbers, whoever asks, in any order."""
    return default_rng([VERSION, *(zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key)])


def scene(seed: int, split: str, number: int, things: int | None = None) -> Scene:
    """The scene of that number. split: any name. things: how many stand in it; None: 1 to 3, equally often."""
    random = stream("scene", seed, split, number)
    count = int(random.integers(1, MOST + 1))
    places = random.permutation(len(PLACES))[: things or count]
    shapes = draw_shapes(random, len(places))
    background = draw(random, tuple(BACKGROUNDS))
    return Scene(tuple(_thing(random, shape, int(at)) for shape, at in zip(shapes, places, strict=True)), background)


def draw(random: Generator, items: Sequence[T]) -> T:
    """One of the items, each as likely."""
    return items[int(random.integers(len(items)))]


def draw_shapes(random: Generator, count: int) -> list[str]:
    """Shapes by frequency; those after the first often its partner."""
    names, chances = list(SHAPES), np.cumsum(list(SHAPES.values()))
    shapes = [names[int(np.searchsorted(chances, random.random() * chances[-1]))] for _ in range(count)]
    return shapes[:1] + [PARTNERS[shapes[0]] if random.random() < PARTNER else shape for shape in shapes[1:]]


def _thing(random: Generator, shape: str, quadrant: int) -> Thing:
    size = draw(random, tuple(SIZES))
    least, most = SIZES[size]
    radius = least + (most - least) * float(random.random())
    half = SIDE / 2
    slack = half / 2 - radius - 0.5  # a thing never leaves its quadrant
    right, down = random.uniform(-slack, slack, 2).tolist()
    x, y = (quadrant % 2 + 0.5) * half + right, (quadrant // 2 + 0.5) * half + down
    return Thing(shape, draw(random, tuple(COLORS)), size, PLACES[quadrant], x, y, radius)
