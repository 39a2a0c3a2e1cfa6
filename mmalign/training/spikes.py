"""Spikes of the loss and of the gradient's norm: seen beside the training, of which they change nothing.

A number spikes where it is far above those just before it: above `times` their median, and above it by SIGMAS of their
spread (1.4826 median absolute deviations), both of logarithms, which makes it the same for a loss of 5 and of 0.05.
The first step counts until it has come back.
"""

import json
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from mmalign.io import files
from mmalign.training.events import Events

log = logging.getLogger(__name__)

NAME = "spikes.jsonl"
WINDOW = 50  # numbers that one is compared with
LEAST = {"norm": 50, "loss": 30}  # of them, before one is
TIMES = {"norm": 3.0, "loss": 1.5}  # their median
SIGMAS = 6.0  # of their spread
CALLED = {"norm": "norm of the gradient", "loss": "loss"}
DIGITS = 4


@dataclass
class Watched:
    """The numbers of one kind so far."""

    least: int
    times: float
    _past: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))  # logarithms
    _calm: bool = True

    def add(self, value: float, early: bool = False) -> float | None:
        """The median of those before, where the value begins a spike. early: it is too soon to say so."""
        if not (value > 0 and math.isfinite(value)):
            return None
        at, spike, usual = math.log(value), False, 0.0
        if len(self._past) >= self.least and not early:
            usual = median(self._past)
            spread = 1.4826 * median(abs(one - usual) for one in self._past)
            spike = at - usual > max(math.log(self.times), SIGMAS * spread)
        begins, self._calm = spike and self._calm, not spike
        self._past.append(at)
        return math.exp(usual) if begins else None


class Spikes:
    """Of a training: told as they come, and written to spikes.jsonl of its folder with the samples of the step, or of
    all steps since the last line of the log where it is the mean loss of those. On the first rank alone.

    warm: steps that none is seen in, for the rate or a term's weight still rises. samples: step (from 0) -> the ids of
    what it trained on, over all ranks.
    """

    def __init__(
        self, folder: Path, events: Events, warm: int = 0, samples: Callable[[int], Sequence[str]] | None = None
    ) -> None:
        self.place, self.events, self.warm, self.samples = folder / NAME, events, warm, samples
        self.watched = {what: Watched(least, TIMES[what]) for what, least in LEAST.items()}

    def resume(self, lines: Sequence[Mapping[str, float]]) -> None:
        """Go on behind these lines of the log."""
        for line in lines[-WINDOW:]:
            for what, watched in self.watched.items():
                watched.add(line.get(what, math.nan), early=True)

    def see(self, what: str, value: float | None, done: int, since: int | None = None) -> None:
        """what: norm or loss, behind step `done`; of the loss the mean since step `since`. Steps done, not numbers."""
        if self.events.rank or value is None:
            return
        usual = self.watched[what].add(value, early=done <= self.warm)
        if usual is None:
            return
        value, usual = (float(f"{number:.{DIGITS}g}") for number in (value, usual))
        steps = range(done - 1 if since is None else since, done)
        samples = [sample for step in steps for sample in (self.samples(step) if self.samples else ())]
        line = {"step": done, "since": steps.start, "what": CALLED[what], "value": value, "usual": usual}
        with open(self.place, "a", encoding="utf-8") as out:
            out.write(json.dumps({**line, "samples": samples}) + "\n")
        named = f" (samples {', '.join(samples[:4])}{', ...' if len(samples) > 4 else ''})" if samples else ""
        told = f"the {CALLED[what]} is {value:g} by step {done}, and was {usual:g} before{named}, see {NAME}"
        log.warning("%s", told)
        self.events.say(told)

    def warnings(self) -> list[str]:
        """How many there were, over all sessions of the run; nothing where there was none."""
        lines = files.read_jsonl(self.place) if self.place.exists() else []
        if not lines:
            return []
        told = f"{len(lines)} spike{'s' * (len(lines) > 1)} of the loss or the gradient, the first by step"
        return [f"{told} {lines[0]['step']}, see {self.place.parent.name}/{NAME}"]
