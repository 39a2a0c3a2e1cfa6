"""`list` and `show`: what the registry holds. Imports only what reading cards needs."""

from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

from mmalign.errors import CardError, RecipeError, suggest
from mmalign.io import yaml
from mmalign.io.visible import one_line
from mmalign.plan import definitions
from mmalign.plan.arguments import Argument, of
from mmalign.plan.cards import FAMILIES, Card, Registry
from mmalign.plan.references import GIVEN

from .lines import say

MORE = ("recipes", "stages")
WIDE = 100  # columns of what an argument is


def family(name: str | None, as_json: bool) -> None:
    from . import dump

    if name is None:
        rows = [{"family": f, "parts": ", ".join(_names(f))} for f in (*FAMILIES, *MORE)]
    else:
        rows = _rows(name)
    dump(rows) if as_json else table(rows)


def _names(name: str) -> list[str]:
    return [row["name"] for row in _rows(name)] if name in MORE else Registry().names(name)


def _rows(name: str) -> list[dict[str, str]]:
    if name == "recipes":
        from mmalign.plan.read import shipped

        return [{"name": recipe, "summary": _first_comment(place)} for recipe, place in shipped().items()]
    if name == "stages":
        from mmalign.plan.recipe import KINDS

        return [{"name": kind, "summary": (cls.__doc__ or "").splitlines()[0]} for kind, cls in KINDS.items()]
    if name not in FAMILIES:
        raise CardError(f"no family {name!r}", fix=suggest(name, (*FAMILIES, *MORE)))
    return [{"name": c.name, "origin": c.origin, "summary": c.summary} for c in Registry().every(name)]


def _first_comment(place: Path) -> str:
    """A recipe's summary is the comment it opens with."""
    with open(place, encoding="utf-8") as source:
        return source.readline().strip().removeprefix("#").strip()


def part(family: str, name: str, as_json: bool) -> None:
    from . import dump

    if family == "recipes":
        from mmalign.plan.read import shipped

        recipes = shipped()
        if name not in recipes:
            raise RecipeError(f"no recipe {name!r}", fix=suggest(name, recipes))
        raw = yaml.read(recipes[name], RecipeError).raw
        dump(raw) if as_json else say(recipes[name].read_text(encoding="utf-8"), end="")
        return
    if family == "stages":
        stage(name, as_json)
        return
    if family not in FAMILIES:
        raise CardError(f"no family {family!r}", fix=suggest(family, (*FAMILIES, *MORE)))
    card = Registry().card(family, name)
    rows = arguments(card)
    if as_json:
        dump({**asdict(card), "arguments": rows})
        return
    for key, item in asdict(card).items():
        if key != "args" and item not in ("", {}, None):
            say(f"{key:<8} {item}")
    for row in rows:
        say(f"\n{row['name']}: {row['value']}")
        for line in wrap(row["about"], WIDE):
            say(f"  {line}")


def arguments(card: Card) -> list[dict[str, str]]:
    """name, value and what it is of every argument of a card's class: what the class's text says, nothing is imported.

    value: the card's; else the class's default; else who gives it. None of a class whose text cannot be read.
    """
    try:
        known = of(card.target) or []
    except definitions.Absent:
        return []
    return [{"name": one.name, "value": _value(one, card), "about": one.about} for one in known]


def _value(one: Argument, card: Card) -> str:
    if one.name in card.args:
        here = repr(card.args[one.name])
        return here if one.default in (None, here) else f"{here}   (the class's own: {one.default})"
    if one.name in GIVEN.get(card.family, ()):
        return "given by the stage"
    return "needed" if one.default is None else one.default


def stage(kind: str, as_json: bool) -> None:
    """The settings of a stage kind, with their defaults."""
    from mmalign.plan.recipe import KINDS

    from . import dump

    if kind not in KINDS:
        raise RecipeError(f"no stage kind {kind!r}", fix=suggest(kind, KINDS))
    rows = [{"setting": key, "default": default} for key, default in _settings(KINDS[kind], "")]
    dump(rows) if as_json else table(rows)


def _settings(cls: Any, under: str) -> Iterator[tuple[str, str]]:
    from mmalign.plan.recipe import key_of

    for f in fields(cls):
        default = f.default_factory() if callable(f.default_factory) else f.default
        if is_dataclass(default) and f.name in ("optim", "engine"):
            yield from _settings(default, f"{f.name}.")
        elif f.name != "kind":
            needed = is_dataclass(default) and any(v == "???" for v in vars(default).values())
            known = "needed" if default == "???" or needed else str(default if default is not None else "none")
            yield f"{under}{key_of(f.name)}", "" if is_dataclass(default) and not needed else known


def table(rows: list[dict[str, str]]) -> None:
    """Columns as wide as they need to be; the last one may be long."""
    if not rows:
        return
    rows = [{key: one_line(cell) for key, cell in row.items()} for row in rows]
    wide = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    for row in [{key: key for key in rows[0]}, *rows]:
        say("  ".join(f"{row[key]:<{wide[key]}}" for key in row).rstrip())
