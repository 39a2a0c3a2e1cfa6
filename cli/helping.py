"""Help that is whole: what a verb does is not cut at the width of the terminal; `-h` and `--version`."""

from typing import Any

import typer
from typer.core import TyperGroup

from mmalign import __version__

from .lines import say

SETTINGS = {"help_option_names": ["-h", "--help"]}
WHOLE = 10_000  # characters of a verb's first sentence, at most


class Verbs(TyperGroup):
    """Lists verbs with their whole first sentences."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # of click, which newer versions of typer hold inside
        verbs = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.get_short_help_str(WHOLE)) for name, verb in verbs if verb])


def version(asked: bool) -> None:
    """What `--version` does."""
    if asked:
        say(f"mmalign {__version__}")
        raise typer.Exit
