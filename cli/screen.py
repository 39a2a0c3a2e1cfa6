"""A console of rich for texts of anybody: control characters are written out wherever a string is shown."""

from typing import Any

from rich.console import Console
from rich.text import Text

from mmalign.io.visible import visible


class Screen(Console):
    """As Console; every string that is printed, and every string in a table, passes `render_str`. A Text does not."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)
