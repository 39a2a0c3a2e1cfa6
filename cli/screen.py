"""A console of rich for texts of anybody: control characters are written out wherever a string is shown."""

from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mmalign.io.visible import visible


class Screen(Console):
    """As Console; every string that is printed, and every string in a table, passes `render_str`. A Text does not."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


class Whole(Table):
    """A table whose cells fold between words alone: where its names do not fit, it is wider than the terminal."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        free = options.update(max_width=10_000)
        for column in self.columns:
            cells = [column.header, *column.cells]
            column.min_width = max(Measurement.get(console, free, cell).minimum for cell in cells)
        yield from super().__rich_console__(console, options)
