"""Live progress on a terminal: a bar for the stage that runs, and its newest numbers."""

import time
from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from mmalign.io.visible import one_line
from mmalign.pipeline.progress import Pace, work
from mmalign.plan.graph import Node

from .live import Rest, begins, name, numbers
from .screen import Screen


class _Progress(Progress):
    """A bar with a text below, which is folded."""

    below = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        if self.below:
            yield Text(self.below, style="dim")


class Bars:
    """A bar for the stage that runs, its newest numbers below, and a line for each that ended."""

    def __init__(self, rest: Rest) -> None:
        self.progress = _Progress(
            TextColumn("{task.description:<14}", markup=False), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False), TextColumn("{task.fields[left]}", markup=False),
            transient=True, console=Screen(stderr=True, markup=False),
        )  # fmt: skip
        self.rest = rest

    def begin(self, node: Node) -> None:
        self.pace = Pace()
        self.rest.begin(node)
        self.progress.console.print(begins(node), style="dim", highlight=False)
        self.bar = self.progress.add_task(name(node), total=None, left="", unit="")
        self.progress.below = ""

    def event(self, node: Node, event: dict[str, Any]) -> None:
        if "say" in event:
            self.progress.console.print(f"{name(node)}: {event['say']}", style="dim", highlight=False)
            return
        done, total, unit = event["done"], event["total"], one_line(event.get("unit", ""))
        self.progress.below = numbers(event["numbers"]) or self.progress.below
        left = self.rest.text(self.pace.left(time.monotonic(), *work(event)))
        self.progress.update(self.bar, completed=done, total=total, left=left, unit=unit)

    def end(self, node: Node, seconds: float) -> None:
        self.progress.below = ""
        self.progress.remove_task(self.bar)
        done = f"✓ {name(node):<14} {seconds:6.1f} s   {node.folder}"
        self.progress.console.print(done, style="green", highlight=False)
