"""Arguments and options that several verbs take."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mmalign.io.environment import ALLOW_CODE


def _recipes(incomplete: str) -> list[str]:
    """Names of shipped recipes, for the shell to complete; it adds files where there is none."""
    from mmalign.plan.read import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


def _families(incomplete: str) -> list[str]:
    from .listing import EVERY

    return [name for name in EVERY if name.startswith(incomplete)]


def _parts(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the family that stands before."""
    from .listing import names

    return [name for name in names(ctx.params["family"]) if name.startswith(incomplete)]


_FAMILY = typer.Argument(
    metavar="FAMILY", autocompletion=_families, help="vision, adapters, llms, ..., recipes, stages"
)
Family = Annotated[str, _FAMILY]
AnyFamily = Annotated[str | None, _FAMILY]
PartName = Annotated[
    str | None,
    typer.Argument(metavar="NAME", autocompletion=_parts, help="left out: all; of recipes, what one may say"),
]
SCHEMA = "recipe.schema.json"  # beside the recipes that name it
RecipeArg = Annotated[
    str, typer.Argument(metavar="RECIPE", autocompletion=_recipes, help="a path, or the name of a shipped recipe")
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="settings laid over the recipe")]
Runs = Annotated[Path, typer.Option(help="where stages are kept")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


_TRACKERS = "trackers that get the numbers, of tensorboard, wandb, trackio, csv; separated by commas"
LogTo = Annotated[str | None, typer.Option("--log-to", metavar="NAMES", help=_TRACKERS)]


def _allow_code(allow: bool) -> bool:
    """For this process and the stages it starts; `main` takes it back."""
    if allow:
        os.environ[ALLOW_CODE] = "1"
    return allow


ALLOW_HELP = f"import classes that no card or package here names (or {ALLOW_CODE}=1)"
AllowCode = Annotated[bool, typer.Option("--allow-code", callback=_allow_code, help=ALLOW_HELP)]
