"""What a recipe needs and this machine lacks, in one table, before anything is begun."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table

from mmalign.io.visible import one_line
from mmalign.pipeline import recipes
from mmalign.plan.gaps import Gap, GapsError, as_json
from mmalign.plan.graph import Node

from . import show
from .screen import Screen


def table(gaps: Sequence[Gap]) -> Table:
    """A row for each: whose it is, what, where from, how large, under which licence and gate, where to, and how."""
    grid = show.table("of", "what", "from", "size", "license", "goes to", "get it")
    for gap in gaps:
        license_ = f"{gap.license}; gate: {gap.gate}" if gap.gate else gap.license
        cells = (gap.part, gap.what, gap.origin, gap.size, license_, gap.place, gap.get)
        grid.add_row(*(one_line(cell) for cell in cells), style=None if gap.blocks else "dim")
    return grid


def tell(gaps: Sequence[Gap], recipe: str, screen: Screen | None = None) -> None:
    """The table, what of it stops no run, and the command that gets all; nothing where nothing is missing."""
    if not gaps:
        return
    screen = screen or show.err
    screen.print(f"{len(gaps)} {'things are' if len(gaps) > 1 else 'thing is'} not here yet:\n", style="bold")
    screen.print(table(gaps))
    if later := [gap for gap in gaps if not gap.blocks]:
        screen.print(f"\n{len(later)} of them stop no run: weights a stage fetches, pictures that rows may do without")
    screen.print(f"\nall that can be fetched: mmalign data get {one_line(recipe)}\n")


@contextmanager
def told(recipe: str, json: bool = False) -> Iterator[None]:
    """Around what may lack something: the table, then the error."""
    try:
        yield
    except GapsError as err:
        if json:
            from . import dump

            dump({"error": err.what, "gaps": as_json(err.gaps)})
        else:
            tell(err.gaps, recipe)
        raise


def reached(recipe: str, overrides: Sequence[str], runs: Path) -> tuple[list[Node], list[str]]:
    """The stages of a recipe that is about to run, and its notes; what is missing is told, an absent hub too."""
    asked = " ".join([recipe, *overrides])
    plan = show.planned(recipe, overrides, runs)
    with told(asked):
        recipes.reached(plan)
    tell(plan.gaps, asked)
    return plan.stages, plan.notes
