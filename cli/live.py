"""Live progress: bars on a terminal, plain lines elsewhere, with the time left of the stage and of all."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmalign.io.visible import one_line
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
    bars = Bars(Rest(nodes, launch))
    with bars.progress:
        yield bars


def name(node: Node) -> str:
    """A stage's name, with its arm where it is of one."""
    arm = f" ({node.arms[0]})" if any(node.arms) and len(node.arms) == 1 else ""
    return one_line(node.name + arm)


def lasting(seconds: float) -> str:
    """A time as people say it: 90 s, 4 min, 2 h 10 min."""
    if not 0 <= seconds < 1e10:  # out of a damaged file
        return "?"
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


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
        self.rest.begin(node)
        self.say(begins(node))

    def event(self, node: Node, event: dict[str, Any]) -> None:
        if "say" in event:
            self.say(f"{name(node)}: {event['say']}")
            return
        now, done, total = time.monotonic(), event["done"], event["total"]
        left = self.pace.left(now, done, total)
        if now - self.last >= EVERY or (left is not None and not self.going):
            self.last, self.going = now, left is not None
            self.say(f"{name(node)}: {done}/{total}  {numbers(event)}  {self.rest.text(left)}".rstrip())

    def end(self, node: Node, seconds: float) -> None:
        self.say(f"{name(node)}: done in {seconds:.0f} s")

    def say(self, text: str) -> None:
        complain(text)


class Bars:
    """A bar for the stage that runs; a line for each that ended."""

    def __init__(self, rest: Rest) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        from .screen import Screen

        self.progress = Progress(
            TextColumn("{task.description:<14}", markup=False), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", markup=False), TextColumn("{task.fields[numbers]}", markup=False),
            transient=True, console=Screen(stderr=True, markup=False),
        )  # fmt: skip
        self.rest = rest

    def begin(self, node: Node) -> None:
        self.pace = Pace()
        self.rest.begin(node)
        self.progress.console.print(begins(node), style="dim", highlight=False)
        self.bar = self.progress.add_task(name(node), total=None, left="", numbers="")

    def event(self, node: Node, event: dict[str, Any]) -> None:
        if "say" in event:
            self.progress.console.print(f"{name(node)}: {event['say']}", style="dim", highlight=False)
        else:
            done, total = event["done"], event["total"]
            left = self.rest.text(self.pace.left(time.monotonic(), done, total))
            self.progress.update(self.bar, completed=done, total=total, left=left, numbers=numbers(event))

    def end(self, node: Node, seconds: float) -> None:
        self.progress.remove_task(self.bar)
        done = f"✓ {name(node):<14} {seconds:6.1f} s   {node.folder}"
        self.progress.console.print(done, style="green", highlight=False)


def begins(node: Node) -> str:
    """Which stage, and where it works and writes its log."""
    return f"{name(node)}: begins   {node.folder}   log {node.folder / 'log.txt'}"


def numbers(event: dict[str, Any]) -> str:
    """The numbers beside a bar."""
    return "  ".join(f"{one_line(key)} {value:g}" for key, value in event.get("numbers", {}).items())
