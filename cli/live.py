"""Live progress: bars on a terminal (bars.py), plain lines elsewhere, with the time left of the stage and of all."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mmalign.io.times import lasting
from mmalign.io.visible import one_line
from mmalign.pipeline import progress
from mmalign.pipeline.progress import Pace
from mmalign.pipeline.records import planned
from mmalign.pipeline.remaining import Times
from mmalign.pipeline.run import Launch, Show
from mmalign.plan.graph import Node

from .lines import complain

EVERY = 5.0  # seconds between two plain lines


@contextmanager
def display(nodes: Sequence[Node], launch: Launch) -> Iterator[Show]:
    """Bars on a terminal, lines elsewhere. nodes: all that will run, for the time left of all of them."""
    if not sys.stderr.isatty():
        yield Lines(Rest(nodes, launch))
        return
    from .bars import Bars  # which needs a part of rich that nothing else does

    bars = Bars(Rest(nodes, launch))
    with bars.progress:
        yield bars


def name(node: Node) -> str:
    """A stage's name, with its arm where it is of one."""
    arm = f" ({node.arms[0]})" if any(node.arms) and len(node.arms) == 1 else ""
    return one_line(node.name + arm)


class Rest:
    """The time left of a stage that runs and of those behind it."""

    def __init__(self, nodes: Sequence[Node], launch: Launch) -> None:
        self.nodes, self.launch = nodes, launch
        self.known: list[float] = []  # seconds of each stage behind it that can be told
        self.unknown = False  # whether there are others

    def begin(self, node: Node) -> None:
        """Look what the stages behind this one will take, now that those before it are done."""
        after = [other for other in self.nodes[_place(node, self.nodes) + 1 :] if not other.done]
        times = Times(node.folder.parent, [other.stage.kind for other in after]) if after else None
        taken = [times.of(planned(other, self.launch.size)) for other in after] if times else []
        self.known = [seconds for seconds in taken if seconds is not None]
        self.unknown = None in taken

    def text(self, left: float | None) -> str:
        """left: seconds of the stage itself; None: not known yet."""
        if left is None:
            return ""
        if not self.known:
            return f"{lasting(left)} left"
        return f"{lasting(left)} left, {'over ' * self.unknown}{lasting(left + sum(self.known))} in all"


def _place(node: Node, nodes: Sequence[Node]) -> int:
    return next((number for number, other in enumerate(nodes) if other is node), len(nodes))


class Lines:
    """A line at the start and end of a stage, and now and then between."""

    def __init__(self, rest: Rest) -> None:
        self.rest = rest

    def begin(self, node: Node) -> None:
        self.last = 0.0  # seconds, when progress was last said; at once, and as soon as there is a time left
        self.pace, self.going = Pace(), False
        self.numbers: dict[str, float] = {}  # that were not said yet
        self.rest.begin(node)
        self.say(begins(node))

    def event(self, node: Node, event: dict[str, Any]) -> None:
        if "say" in event:
            self.say(f"{name(node)}: {event['say']}")
            return
        now, done, total = time.monotonic(), event["done"], event["total"]
        self.numbers = event["numbers"] or self.numbers
        left = self.pace.left(now, *progress.work(event))
        if now - self.last >= EVERY or (left is not None and not self.going):
            self.last, self.going = now, left is not None
            told = [far(done, total, event.get("unit", "")), numbers(self.numbers), self.rest.text(left)]
            self.say(f"{name(node)}: {'  '.join(filter(None, told))}")
            self.numbers = {}

    def end(self, node: Node, seconds: float) -> None:
        self.say(f"{name(node)}: done in {seconds:.0f} s")

    def say(self, text: str) -> None:
        complain(text)


def begins(node: Node) -> str:
    """Which stage, and where it works and writes its log."""
    return f"{name(node)}: begins   {node.folder}   log {node.folder / 'log.txt'}"


def far(done: int, total: int, unit: str) -> str:
    """How much of the work is done: 12/48 questions."""
    return f"{done}/{total} {one_line(unit)}".rstrip()


# of numbers that have one, how they are told
TOLD = {"steps_per_second": "steps/s {:g}", "peak_memory_gib": "peak memory {:.3g} GiB", "gpu_percent": "GPU {:.0f} %"}
UNTOLD = {*progress.UNITS, "time"}  # their speed says more


def numbers(of: Mapping[str, float]) -> str:
    """The numbers beside a bar: every loss and norm, the learning rate, then how fast it goes, and what it takes."""
    speeds = progress.speeds(of)
    first = {name: value for name, value in of.items() if name not in TOLD and name not in speeds}
    told = {name: value for name, value in first.items() if name not in UNTOLD or not speeds} | speeds
    texts = [f"{one_line(name)} {value:.4g}" for name, value in told.items()]
    return "  ".join(texts + [TOLD[name].format(of[name]) for name in TOLD if name in of])
