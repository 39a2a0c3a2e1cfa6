"""Live progress: bars with the time left on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmalign.io.visible import one_line
from mmalign.pipeline.run import Show
from mmalign.plan.graph import Node

from .lines import complain

EVERY = 5.0  # seconds between two plain lines


@contextmanager
def display() -> Iterator[Show]:
    """Bars on a terminal, lines elsewhere."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    bars = Bars()
    with bars.progress:
        yield bars


def name(node: Node) -> str:
    """A stage's name, with its arm where it is of one."""
    arm = f" ({node.arms[0]})" if any(node.arms) and len(node.arms) == 1 else ""
    return one_line(node.name + arm)


class Lines:
    """A line at the start and end of a stage, and now and then between."""

    def begin(self, node: Node) -> None:
        self.last = 0.0  # seconds, when progress was last said; at once, and as soon as there is a time left
        self.first: tuple[float, int] | None = None  # when work was last not seen to go on yet, and how far it was
        self.going = False
        self.say(f"{name(node)}: begins   {node.folder}")

    def event(self, node: Node, event: dict[str, Any]) -> None:
        if "say" in event:
            self.say(f"{name(node)}: {event['say']}")
            return
        now, done, total = time.monotonic(), event["done"], event["total"]
        if self.first is None or done == self.first[1]:  # a stage that goes on has done some; a model is loaded first
            self.first = now, done
        began, before = self.first
        if now - self.last >= EVERY or (done > before and not self.going):
            self.last, self.going = now, done > before
            left = f"{(now - began) * (total - done) / (done - before):.0f} s left" if done > before else ""
            self.say(f"{name(node)}: {done}/{total}  {numbers(event)}  {left}".rstrip())

    def end(self, node: Node, seconds: float) -> None:
        self.say(f"{name(node)}: done in {seconds:.0f} s")

    def say(self, text: str) -> None:
        complain(text)


class Bars:
    """A bar for the stage that runs; a line for each that ended."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from .screen import Screen

        self.progress = Progress(
            TextColumn("{task.description:<14}", markup=False), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[numbers]}", markup=False), transient=True,
            console=Screen(stderr=True, markup=False),
        )  # fmt: skip

    def begin(self, node: Node) -> None:
        self.bar = self.progress.add_task(name(node), total=None, numbers="")

    def event(self, node: Node, event: dict[str, Any]) -> None:
        if "say" in event:
            self.progress.console.print(f"{name(node)}: {event['say']}", style="dim", highlight=False)
        else:
            done, total = event["done"], event["total"]
            self.progress.update(self.bar, completed=done, total=total, numbers=numbers(event))

    def end(self, node: Node, seconds: float) -> None:
        self.progress.remove_task(self.bar)
        done = f"✓ {name(node):<14} {seconds:6.1f} s   {node.folder}"
        self.progress.console.print(done, style="green", highlight=False)


def numbers(event: dict[str, Any]) -> str:
    """The numbers beside a bar."""
    return "  ".join(f"{one_line(key)} {value:g}" for key, value in event.get("numbers", {}).items())
