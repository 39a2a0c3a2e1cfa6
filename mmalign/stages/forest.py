"""Where the marks of a forest plot lie: differences and their intervals, a panel and a scale for every benchmark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH = 360.0  # of the drawing, in units of about a pixel on a phone
LEFT, RIGHT = 8.0, 352.0  # of the scale
LONGEST = 52  # characters of a line: an arm's name and its numbers
HEAD, ROW, FOOT = 24.0, 30.0, 30.0  # heights: a panel's title, a mark with its name, its scale
TICKS = 5  # at most about so many


@dataclass
class Mark:
    """A difference with its interval. x, y: where it lies; ends_x: the interval's ends."""

    name: str
    value: float
    ends: tuple[float, float] | None
    text: str  # the numbers, as printed
    told: str  # what they say
    x: float = 0.0
    y: float = 0.0
    ends_x: tuple[float, float] | None = None

    @property
    def label(self) -> str:
        """The name, as short as its line needs it."""
        room = max(LONGEST - len(self.text), 8)
        return self.name if len(self.name) <= room else self.name[: room - 1] + "…"


@dataclass
class Panel:
    """The marks of one benchmark. y: of its title; axis_y: of its scale; ticks: (x, what it says)."""

    title: str
    marks: list[Mark] = field(default_factory=list)
    y: float = 0.0
    axis_y: float = 0.0
    zero_x: float = 0.0
    ticks: list[tuple[float, str]] = field(default_factory=list)


def placed(panels: list[Panel]) -> list[Panel]:
    """The panels below each other, each on its own scale, in which zero always lies."""
    top = 0.0
    for panel in panels:
        low, high = _range([value for mark in panel.marks for value in (mark.value, *(mark.ends or ()))])
        panel.y, panel.zero_x = top + 16, _x(0.0, low, high)
        for number, mark in enumerate(panel.marks):
            mark.x, mark.y = _x(mark.value, low, high), top + HEAD + ROW * number + 21
            mark.ends_x = (_x(mark.ends[0], low, high), _x(mark.ends[1], low, high)) if mark.ends else None
        panel.axis_y = top + HEAD + ROW * len(panel.marks) + 4
        panel.ticks = [(_x(value, low, high), f"{value:g}") for value in _ticks(low, high)]
        top = panel.axis_y + FOOT
    return panels


def height(panels: Sequence[Panel]) -> float:
    return panels[-1].axis_y + FOOT if panels else 0.0


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The ends of a scale: all values and zero, and a little more."""
    low, high = min(0.0, *values), max(0.0, *values)
    margin = (high - low) * 0.06 or 1.0
    return low - margin, high + margin


def _x(value: float, low: float, high: float) -> float:
    return round(LEFT + (value - low) / (high - low) * (RIGHT - LEFT), 2)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between the ends, zero among them."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough)
    return [round(step * number, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
