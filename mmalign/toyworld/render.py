"""How a scene looks: its pixels, whose each pixel is, and what each patch of any grid shows.

Letters: S side of the image, N things, H x W = P patches.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmalign.data import Truth
from mmalign.toyworld.world import BACKGROUNDS, COLORS, SIDE, Scene, Thing

if TYPE_CHECKING:
    from mmalign.vision.frame import Box

Plane = NDArray[np.floating[Any]]
WHOLE: "Box" = (0.0, 0.0, 1.0, 1.0)
Mask = NDArray[np.bool_]
Coordinates = NDArray[np.int64]

COORDINATES: Coordinates = np.arange(SIDE)

NOISE = 16  # brightness levels between the darkest and the brightest noise
DARK = 0.4  # brightness of the dark parts of a texture
SHOWN = 0.25  # share of a patch that one object covers: the patch shows it
EMPTY = 0.06  # share of a patch that no object reaches: the patch shows the background


def _star(x: Plane, y: Plane) -> Mask:
    """Five points; the edge between a tip and the next notch is a straight line."""
    tip, notch = 1.1, 0.52
    turn = np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + turn) % (2 * turn) - turn)
    across, along = np.sin(turn) * notch, tip - np.cos(turn) * notch
    inside: Mask = np.hypot(x, y) <= tip * across / (np.sin(angle) * along + np.cos(angle) * across)
    return inside


# x to the right, y down, in radii from the centre
OUTLINES: dict[str, Callable[[Plane, Plane], Mask]] = {
    "circle": lambda x, y: np.hypot(x, y) <= 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.9,
    "triangle": lambda x, y: (y <= 0.85) & (abs(x) <= (y + 1) * 0.55),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.38) & (np.maximum(abs(x), abs(y)) <= 1),
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.75) <= 0.25,
    "star": _star,
}

# True: the dark parts; x and y in pixels of the image: a texture looks the same in every patch of 6 or 12 pixels
TEXTURES: dict[str, Callable[[Coordinates, Coordinates], Mask]] = {
    "circle": lambda x, y: x < 0,  # plain
    "square": lambda x, y: y % 6 < 3,
    "triangle": lambda x, y: x % 6 < 3,
    "cross": lambda x, y: (x % 6 < 3) ^ (y % 6 < 3),
    "ring": lambda x, y: (x + y) % 6 < 3,
    "star": lambda x, y: (x % 6 < 3) & (y % 6 < 3),
}


def owners(scene: Scene) -> NDArray[np.int8]:
    """owner_SS: the number of the thing a pixel belongs to, -1 for the background."""
    owner_SS = np.full((SIDE, SIDE), -1, np.int8)
    for number, thing in enumerate(scene.things):
        box, x, y = _around(thing)
        owner_SS[box][OUTLINES[thing.shape](x / thing.radius, y / thing.radius)] = number
    return owner_SS


def _around(thing: Thing) -> tuple[tuple[slice, slice], Plane, Plane]:
    """The pixels near a thing, and how far right of and below its centre they are."""
    reach = thing.radius * 1.1 + 1
    left, right = max(0, int(thing.x - reach)), min(SIDE, int(thing.x + reach) + 1)
    top, bottom = max(0, int(thing.y - reach)), min(SIDE, int(thing.y + reach) + 1)
    x, y = np.arange(left, right) + 0.5 - thing.x, np.arange(top, bottom) + 0.5 - thing.y
    return (slice(top, bottom), slice(left, right)), x[None, :], y[:, None]


def pixels(scene: Scene, noise: bytes) -> NDArray[np.uint8]:
    """pixels_SS3. noise: SIDE * SIDE * 3 random bytes."""
    pixels_SS3 = np.empty((SIDE, SIDE, 3), np.int16)
    pixels_SS3[:] = BACKGROUNDS[scene.background]
    for thing in scene.things:
        box, x, y = _around(thing)
        inside = OUTLINES[thing.shape](x / thing.radius, y / thing.radius)
        dark = np.broadcast_to(
            TEXTURES[thing.shape](COORDINATES[None, box[1]], COORDINATES[box[0], None]), inside.shape
        )
        bright = np.array(COLORS[thing.color])
        pixels_SS3[box][inside] = np.where(dark[..., None], bright * DARK, bright)[inside]
    grain_SS3 = np.frombuffer(noise, np.uint8).reshape(SIDE, SIDE, 3) % NOISE
    return (pixels_SS3 + grain_SS3 - NOISE // 2).clip(0, 255).astype(np.uint8)


def truth(scene: Scene, grid: Sequence[int], region: "Box" = WHOLE) -> Truth:
    """What each patch of a grid (rows, columns) over a region of the image shows: P entries, row by row."""
    rows, columns = grid
    share_NHW = shares(owners(scene), len(scene.things), rows, columns, region)
    patches = Truth([])
    for share_N in share_NHW.reshape(len(scene.things), -1).T:
        best = int(share_N.argmax())
        is_object = bool(share_N[best] >= SHOWN)
        is_empty = bool((share_N < EMPTY).all())
        patches.words.append(_words(scene, best) if is_object else background(scene) if is_empty else ())
        patches.object.append(True if is_object else False if is_empty else None)
    return patches


def _words(scene: Scene, number: int) -> tuple[str, ...]:
    thing = scene.things[number]
    return (thing.shape, thing.color, thing.size)


def background(scene: Scene) -> tuple[str, ...]:
    """The words true of a patch that shows the background."""
    return ("background", scene.background)


def shares(owner_SS: NDArray[np.int8], things: int, rows: int, columns: int, region: "Box" = WHOLE) -> Plane:
    """share_NHW: how much of each patch each thing covers; patches may cut through pixels and reach outside."""
    owned_NSS = np.arange(things)[:, None, None] == owner_SS
    x0, y0, x1, y1 = region
    area_NHW: Plane = _cover(rows, y0, y1) @ owned_NSS @ _cover(columns, x0, x1).T
    return area_NHW / (SIDE**2 * (x1 - x0) * (y1 - y0))


def _cover(patches: int, start: float, end: float) -> Plane:
    """cover_HS: how much of each pixel lies in each patch of a row over a stretch of the image, in 1/patches: whole
    numbers where it is the whole image, so exact."""
    edge = SIDE * (start * patches + np.arange(patches + 1) * (end - start))
    pixel = np.arange(SIDE) * patches
    overlap: Plane = np.minimum(edge[1:, None], pixel + patches) - np.maximum(edge[:-1, None], pixel)
    return overlap.clip(0)
