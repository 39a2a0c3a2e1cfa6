"""How far a stage is, from the lines it left in events.jsonl, and the seconds it still takes."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

from mmalign.io import document

UNITS = ("tokens", "samples", "images")  # of a step, in the log
POINTS = 200  # of a curve
MOMENTS = 128  # that are remembered, at most
END = 1 << 16  # bytes at the beginning, in the middle and at the end of a file that are looked at


class Line(TypedDict):
    """Of events.jsonl, about progress."""

    done: document.Count
    total: document.Count
    unit: NotRequired[str]  # of work, such as `steps`; 0.2.0 wrote none
    work: NotRequired[tuple[document.Count, document.Count]]  # done and total as they take time; none: as above
    time: NotRequired[float]  # seconds since 1970; 0.1.0 wrote none


class Told(Line):
    """Likewise, as the run hears it."""

    numbers: dict[str, float]  # to be shown beside the bar


class Said(TypedDict):
    """Of events.jsonl, for the reader."""

    say: str


class Moment(NamedTuple):
    """How much was done at a time, in seconds."""

    time: float
    done: int


class Pace:
    """The time left of one stage, at the speed of the newer half of what was done since work was first seen to go on.

    A stage that was begun before has some done already, a model is loaded first, and the first steps are slower.
    """

    def __init__(self) -> None:
        self.moments: list[Moment] = []  # the first, and some of those since, evenly over the work

    def left(self, now: float, done: int, total: int) -> float | None:
        """Seconds, as of a new moment; None as long as nothing was done since the first."""
        if not self.moments or done == self.moments[0].done:
            self.moments = [Moment(now, done)]
            return None
        first, last = self.moments[0].done, self.moments[-1].done
        since = [moment for moment in self.moments if moment.done <= (first + done) / 2][-1]
        if done - last >= (total - first) / MOMENTS:
            self.moments.append(Moment(now, done))
        return (now - since.time) * (total - done) / (done - since.done)


def work(line: Line | Mapping[str, Any]) -> tuple[int, int]:
    """Done and total of a line about progress, as they take time."""
    done, total = line.get("work") or (line["done"], line["total"])
    return done, total


@dataclass(frozen=True)
class Progress:
    """done, total: in the stage's own `unit`: steps, questions, records. left: seconds; None: not known."""

    done: int
    total: int
    left: float | None
    unit: str = ""


def of(folder: Path) -> Progress | None:
    """The newest of a stage; None where it said nothing yet."""
    pace = Pace()
    newest: Line | None = None
    left: float | None = None
    for line in _events(folder / "events.jsonl"):
        newest = line
        left = pace.left(line["time"], *work(line)) if "time" in line else None
    if newest is None:
        return None
    if left is not None and "time" in newest:
        left = max(0.0, left - (time.time() - newest["time"]))
    return Progress(newest["done"], newest["total"], left, newest.get("unit", ""))


def metrics(folder: Path) -> dict[str, float]:
    """The newest line of a stage's metrics.jsonl, with what it is a second; empty where there is none."""
    lines = (_parsed(line, dict[str, float]) for line in reversed(_lines(folder / "metrics.jsonl")))
    newest: dict[str, float] = next(filter(None, lines), {})
    return {name: value for name, value in newest.items() if name not in ("time", "step")} | speeds(newest)


class Spike(TypedDict):
    """Of spikes.jsonl, as far as it is read here."""

    step: document.Count
    what: str


def spikes(folder: Path) -> list[Spike]:
    """Those of a stage's loss and gradient, the last at the end; of many only some."""
    return list(filter(None, (_parsed(line, Spike) for line in _lines(folder / "spikes.jsonl"))))


def curves(folder: Path) -> list[dict[str, float]]:
    """Lines of a stage's metrics.jsonl, at most POINTS from all over the steps, with what they are a second; in the
    place of what a step has of each unit."""
    rows: dict[float, dict[str, float]] = {}
    for row in filter(None, (_parsed(line, dict[str, float]) for line in _lines(folder / "metrics.jsonl"))):
        numbers = {name: value for name, value in row.items() if name not in ("time", *UNITS)}
        rows[row.get("step", -1)] = numbers | speeds(row)
    steps = sorted(step for step in rows if step >= 0)
    every = -(-len(steps) // POINTS)
    return [rows[step] for step in reversed(steps[::-1][:: every or 1])]  # the newest among them


def speeds(numbers: Mapping[str, float]) -> dict[str, float]:
    """What a line of the log, whose tokens, images and samples are those of a step, says they are a second."""
    steps = numbers.get("steps_per_second")
    units = [unit for unit in UNITS if unit in numbers and steps is not None]
    return {f"{unit}/s": numbers[unit] * numbers["steps_per_second"] for unit in units}


def event(line: bytes) -> dict[str, Any] | None:
    """A line of events.jsonl; None for one that is cut, or none of ours."""
    return _parsed(line, Said) or _parsed(line, Told)  # type: ignore[no-any-return]


def _events(place: Path) -> Iterator[Line]:
    """The lines about progress that are looked at, in their order."""
    for line in _lines(place):
        if known := _parsed(line, Line):
            yield known


def _parsed(line: bytes, kind: Any) -> Any:
    """None for a line that is cut, or none of ours."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return None if document.problem(value, kind) else value


def _lines(place: Path) -> list[bytes]:
    """The first, some in the middle and the last; those at the edges may be cut."""
    try:
        with open(place, "rb") as source:
            size, end = source.seek(0, os.SEEK_END), 0
            lines = []
            for start in (0, (size - END) // 2, size - END):
                source.seek(max(start, end))
                lines += source.read(END).splitlines()
                end = source.tell()
            return lines
    except OSError:
        return []
