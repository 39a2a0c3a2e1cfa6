"""Where a patch lies in the picture: what an encoder's square of patches covers, by its own preparation of pictures.

Coordinates of a picture: x to the right and y down, both 0 to 1; what lies outside is no picture.
Letters: P patches, row by row.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import floor
from typing import Literal

Box = tuple[float, float, float, float]  # x0, y0, x1, y1
Fit = Literal["crop", "pad", "squash"]
FITS: tuple[Fit, ...] = ("crop", "pad", "squash")
SEEN = 0.5  # a patch that shows less picture than this share of itself has no word: it is padding
_ROUNDING = 1e-9  # of a share that is one half


@dataclass(frozen=True)
class Frame:
    """The patches of one picture of `size` (width, height), in pixels, upright.

    fit: crop, the middle square of the picture; pad, all of it in the middle of a square; squash, all of it, its sides
    made equal; native, as the encoder's own tiling has it. grid: (rows, columns). region: what the grid covers, in the
    picture's coordinates; it reaches outside where there is padding.
    """

    fit: str
    size: tuple[int, int]
    grid: tuple[int, int]
    region: Box = (0.0, 0.0, 1.0, 1.0)

    @classmethod
    def resized(
        cls, fit: str, size: tuple[int, int], grid: tuple[int, int], side: int, resized: tuple[int, int],
        corner: tuple[int, int],
    ) -> "Frame":  # fmt: skip
        """Of a picture resized to (width, height), its upper left corner at `corner` of a square of `side` pixels."""
        (width, height), (left, top) = resized, corner
        return cls(fit, size, grid, (-left / width, -top / height, (side - left) / width, (side - top) / height))

    def of_part(self, size: tuple[int, int], box: tuple[int, int, int, int]) -> "Frame":
        """The frame in a picture of `size` of which this one is the part inside `box` (left, top, right, bottom)."""
        (width, height), (left, top, right, bottom) = size, box
        x0, x1 = ((left + x * (right - left)) / width for x in self.region[::2])
        y0, y1 = ((top + y * (bottom - top)) / height for y in self.region[1::2])
        return replace(self, size=size, region=(x0, y0, x1, y1))

    def trimmed(self, rows: float, columns: float) -> "Frame":
        """Of patches that cover only these shares of the square, from its upper left: 27 x 14 of 384 pixels."""
        x0, y0, x1, y1 = self.region
        return replace(self, region=(x0, y0, x0 + columns * (x1 - x0), y0 + rows * (y1 - y0)))

    def patch_boxes(self) -> list[Box]:
        """boxes_P4 of the patches in the picture's coordinates; they may reach outside."""
        columns, rows = self._edges()
        return [(x0, y0, x1, y1) for (y0, y1), (x0, x1) in product(rows, columns)]

    def visible(self) -> list[float]:
        """visible_P: the share of each patch that shows picture, 0 to 1."""
        columns, rows = ([_inside(*edge) for edge in axis] for axis in self._edges())
        return [row * column for row, column in product(rows, columns)]

    def seen(self) -> list[bool]:
        """seen_P: whether a patch shows enough picture to have a word; the others are padding."""
        return list(_seen(self))

    def patch_at(self, x: float, y: float) -> int:
        """The patch over a point of the picture; -1: outside the picture, or cropped away."""
        column, row = self._column(x), self._row(y)
        return row * self.grid[1] + column if min(column, row) >= 0 else -1

    def onto(self, other: "Frame") -> list[int]:
        """index_P: for every patch of `other`, a frame of the same picture, the patch here under its centre, or -1.

        -1 as well for a patch of `other` that is padding, and under one that is padding here.
        """
        return list(_onto(self, other))

    def _edges(self) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
        """(start, end) of every column, and of every row."""
        x0, y0, x1, y1 = self.region
        rows, columns = self.grid
        return _cut(x0, x1, columns), _cut(y0, y1, rows)

    def _column(self, x: float) -> int:
        return _number(x, self.region[0], self.region[2], self.grid[1])

    def _row(self, y: float) -> int:
        return _number(y, self.region[1], self.region[3], self.grid[0])


@lru_cache(4096)
def _seen(frame: Frame) -> tuple[bool, ...]:
    return tuple(share >= SEEN - _ROUNDING for share in frame.visible())


@lru_cache(4096)
def _onto(source: Frame, target: Frame) -> tuple[int, ...]:
    columns, rows = target._edges()
    column_W = [source._column((start + end) / 2) for start, end in columns]
    row_H = [source._row((start + end) / 2) for start, end in rows]
    source_seen, width = _seen(source), source.grid[1]
    under = (
        row * width + column if min(row, column) >= 0 and source_seen[row * width + column] else -1
        for row, column in product(row_H, column_W)
    )
    return tuple(patch if shown else -1 for patch, shown in zip(under, _seen(target), strict=True))


def _cut(start: float, end: float, count: int) -> list[tuple[float, float]]:
    step = (end - start) / count
    return [(start + number * step, start + (number + 1) * step) for number in range(count)]


def _inside(start: float, end: float) -> float:
    """The share of a stretch that lies between 0 and 1."""
    return max(0.0, min(end, 1.0) - max(start, 0.0)) / (end - start)


def _number(at: float, start: float, end: float, count: int) -> int:
    """Which of `count` equal parts of a stretch a point of the picture lies in; -1: none."""
    if not 0 <= at <= 1:
        return -1
    number = floor((at - start) / (end - start) * count)
    return min(number, count - 1) if at <= end and number >= 0 else -1
