"""`show stages KIND`, `show recipes` and `schema`: every setting with its type, unit, default and meaning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmalign.errors import MMAlignError, RecipeError, RunError, suggest
from mmalign.io import files
from mmalign.plan import meanings
from mmalign.plan.cards import Registry
from mmalign.plan.meanings import Setting
from mmalign.plan.recipe import KINDS, RecipeFile

from .lines import folded, say


def stage(kind: str, as_json: bool) -> None:
    """The settings of a kind of stage."""
    if kind not in KINDS:
        raise RecipeError(f"no stage kind {kind!r}", fix=suggest(kind, KINDS))
    _tell((KINDS[kind].__doc__ or "").splitlines()[0], meanings.of_stage(KINDS[kind]), as_json)


def recipe(as_json: bool) -> None:
    """The settings of a recipe beside those of its stages."""
    _tell("What a recipe says; of its stages see `mmalign show stages KIND`.", list(meanings.of(RecipeFile)), as_json)


def _tell(summary: str, settings: Sequence[Setting], as_json: bool) -> None:
    from . import dump

    if as_json:
        dump([_as_json(one) for one in settings])
        return
    say(summary)
    for one in settings:
        say(f"\n{one.key}: {one.type}{', ' + one.unit if one.unit else ''}{_default(one)}")
        for line in folded(one.meaning, 2):
            say(f"  {line}")


def _default(one: Setting) -> str:
    if one.needed:
        return "   (needed)"
    return "" if one.default in (None, "", [], {}) else f"   (default: {_plain(one.default)})"


def _plain(value: Any) -> str:
    """As YAML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _as_json(one: Setting) -> dict[str, Any]:
    return {
        "setting": one.key,
        "type": one.type,
        "choices": one.choices,
        "bounds": one.bounds,
        "unit": one.unit,
        "needed": one.needed,
        "default": one.default,
        "meaning": one.meaning,
    }


def schema(place: Path) -> None:
    """Write the schema of recipes with the cards of here; `-` prints it. A file that is none of ours is left alone."""
    from mmalign.plan import schema as recipes

    text = recipes.text(recipes.schema(Registry()))
    if str(place) == "-":
        say(text, end="")
        return
    if place.exists() and not _ours(place, recipes.TITLE):
        raise RunError(f"{place} is there already, and is no schema of recipes", at=str(place), fix="another FILE")
    files.write(place, text)
    say(f"{place}: for a recipe beside it that begins with this line\n{recipes.line(place.name)}")


def _ours(place: Path, title: str) -> bool:
    try:
        held = files.read_json(place)
    except MMAlignError:
        return False
    return isinstance(held, dict) and held.get("title") == title
