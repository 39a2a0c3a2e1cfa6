"""Arguments and options that several verbs take."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mmalign.io.environment import ALLOW_CODE

RecipeArg = Annotated[str, typer.Argument(metavar="RECIPE", help="a path, or the name of a shipped recipe")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="settings laid over the recipe")]
Runs = Annotated[Path, typer.Option(help="where stages are kept")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def _allow_code(allow: bool) -> bool:
    """For this process and the stages it starts; `main` takes it back."""
    if allow:
        os.environ[ALLOW_CODE] = "1"
    return allow


ALLOW_HELP = f"import classes that no card or package here names (or {ALLOW_CODE}=1)"
AllowCode = Annotated[bool, typer.Option("--allow-code", callback=_allow_code, help=ALLOW_HELP)]
