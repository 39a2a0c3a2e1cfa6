"""How far a stage is, from the lines it left in events.jsonl, and the seconds it still takes."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

from mmalign.io import document

END = 1 << 16  # bytes at the beginning and at the end of the file that are looked at


class Line(TypedDict):
    """Of events.jsonl, about progress."""

    done: document.Count
    total: document.Count
    time: NotRequired[float]  # seconds since 1970; 0.1.0 wrote none


class Moment(NamedTuple):
    """How much was done at a time, in seconds."""

    time: float
    done: int


class Pace:
    """The time left of one stage. It counts from where work is first seen to go on: a stage that was begun before has
    some done already, and a model is loaded first."""

    def __init__(self) -> None:
        self.first: Moment | None = None

    def left(self, now: float, done: int, total: int) -> float | None:
        """Seconds, as of a new moment; None as long as nothing was done since the first."""
        if self.first is None or done == self.first.done:
            self.first = Moment(now, done)
        began, before = self.first
        return (now - began) * (total - done) / (done - before) if done > before else None


@dataclass(frozen=True)
class Progress:
    """done, total: in the stage's own unit: steps, questions, images. left: seconds; None: not known."""

    done: int
    total: int
    left: float | None


def of(folder: Path) -> Progress | None:
    """The newest of a stage; None where it said nothing yet."""
    pace = Pace()
    newest: Line | None = None
    left: float | None = None
    for event in _events(folder / "events.jsonl"):
        newest = event
        left = pace.left(event["time"], event["done"], event["total"]) if "time" in event else None
    if newest is None:
        return None
    if left is not None and "time" in newest:
        left = max(0.0, left - (time.time() - newest["time"]))
    return Progress(newest["done"], newest["total"], left)


def metrics(folder: Path) -> dict[str, float]:
    """The newest line of a stage's metrics.jsonl, with what it is a second; empty where there is none."""
    lines = (_parsed(line, dict[str, float]) for line in reversed(_lines(folder / "metrics.jsonl")))
    newest: dict[str, float] = next(filter(None, lines), {})
    steps = newest.get("steps_per_second")
    units = [unit for unit in ("tokens", "images") if unit in newest and steps is not None]
    speeds = {f"{unit}/s": newest[unit] * newest["steps_per_second"] for unit in units}
    return {name: value for name, value in newest.items() if name not in ("time", "step")} | speeds


def _events(place: Path) -> Iterator[Line]:
    """The first and the last lines about progress."""
    for line in _lines(place):
        if event := _parsed(line, Line):
            yield event


def _parsed(line: bytes, kind: Any) -> Any:
    """None for a line that is cut, or none of ours."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return None if document.problem(value, kind) else value


def _lines(place: Path) -> list[bytes]:
    try:
        with open(place, "rb") as source:
            size = source.seek(0, os.SEEK_END)
            source.seek(0)
            begin = source.read(END)
            source.seek(max(END, size - END))
            return [*begin.splitlines(), *source.read().splitlines()]
    except OSError:
        return []
