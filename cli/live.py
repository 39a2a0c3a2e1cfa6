"""Live progress: bars with the time left on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmalign.graph import Node
from mmalign.run import Show

EVERY = 5.0  # seconds between two plain lines


@contextmanager
def display() -> Iterator[Show]:
    if not sys.stderr.isatty():
        yield Lines()
        return
    bars = Bars()
    with bars.progress:
        yield bars


def name(node: Node) -> str:
    return f"{node.name} ({node.arms[0]})" if any(node.arms) and len(node.arms) == 1 else node.name


class Lines:
    """A line at the start and end of a stage, and now and then between."""

    def begin(self, node: Node) -> None:
        self.began = self.last = time.monotonic()
        self.say(f"{name(node)}: begins   {node.folder}")

    def event(self, node: Node, event: dict[str, Any]) -> None:
        if "say" in event:
            self.say(f"{name(node)}: {event['say']}")
        elif time.monotonic() - self.last >= EVERY:
            self.last = time.monotonic()
            done, total = event["done"], event["total"]
            left = (self.last - self.began) * (total - done) / max(1, done)
            self.say(f"{name(node)}: {done}/{total}  {numbers(event)}  {left:.0f} s left")

    def end(self, node: Node, seconds: float) -> None:
        self.say(f"{name(node)}: done in {seconds:.0f} s")

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Bars:
    """A bar for the stage that runs; a line for each that ended."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("{task.description:<14}", markup=False), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[numbers]}", markup=False), transient=True,
            console=Console(stderr=True, markup=False),
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
        line = f"✓ {name(node):<14} {seconds:6.1f} s   {node.folder}"
        self.progress.console.print(line, style="green", highlight=False)


def numbers(event: dict[str, Any]) -> str:
    return "  ".join(f"{key} {value:g}" for key, value in event.get("numbers", {}).items())
