"""`list` and `show`: what the registry holds. Imports only what reading cards needs."""

import ast
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmalign.errors import CardError, RecipeError, suggest
from mmalign.io import yaml
from mmalign.io.document import words
from mmalign.io.visible import one_line
from mmalign.plan import definitions, downloads
from mmalign.plan.arguments import Argument, of
from mmalign.plan.cards import FAMILIES, Card, Registry, as_dict
from mmalign.plan.downloads import File
from mmalign.plan.references import GIVEN

from .lines import folded, say

MORE = ("recipes", "stages")
EVERY = (*FAMILIES, *MORE)
GAP = "  "  # between two columns


def listed(name: str | None, as_json: bool) -> None:
    from . import dump

    rows: list[dict[str, Any]]
    if name is None:
        rows = [{"family": f, "parts": names(f)} for f in EVERY]
    else:
        rows = _rows(name)
    dump(rows) if as_json else table(rows)


def names(name: str) -> list[str]:
    """What there is of a family, and of the recipes and kinds of stages."""
    return [row["name"] for row in _rows(name)] if name in MORE else Registry().names(name)


def _rows(name: str) -> list[dict[str, Any]]:
    if name == "recipes":
        from mmalign.plan.read import shipped

        return [{"name": recipe, "summary": _first_comment(place)} for recipe, place in shipped().items()]
    if name == "stages":
        from mmalign.plan.recipe import KINDS

        return [{"name": kind, "summary": (cls.__doc__ or "").splitlines()[0]} for kind, cls in KINDS.items()]
    if name not in FAMILIES:
        raise CardError(f"no family {name!r}", fix=suggest(name, EVERY))
    return [{"name": c.name, "origin": c.origin, "summary": c.summary} for c in Registry().every(name)]


def _first_comment(place: Path) -> str:
    """A recipe's summary is the comment it opens with."""
    with open(place, encoding="utf-8") as source:
        return source.readline().strip().removeprefix("#").strip()


def part(family: str, name: str | None, as_json: bool) -> None:
    """One part, recipe or kind of stage; without a name what a recipe's file may say, or the family's parts."""
    from . import dump

    if name is None and family != "recipes":
        listed(family, as_json)
        return
    if name is None or family == "stages":
        from . import settings

        settings.stage(name, as_json) if name else settings.recipe(as_json)
        return
    if family == "recipes":
        from mmalign.plan.read import shipped

        recipes = shipped()
        if name not in recipes:
            raise RecipeError(f"no recipe {name!r}", fix=suggest(name, recipes))
        raw = yaml.read(recipes[name], RecipeError).raw
        dump(raw) if as_json else say(recipes[name].read_text(encoding="utf-8"), end="")
        return
    if family not in FAMILIES:
        raise CardError(f"no family {family!r}", fix=suggest(family, EVERY))
    card = Registry().card(family, name)
    known = arguments(card)
    if as_json:
        dump({**as_dict(card), "source": _sources_json(card), "arguments": [_as_json(one, card) for one in known]})
        return
    for key, item in asdict(card).items():
        if key not in ("args", "source") and item not in ("", {}, None):
            say(f"{key:<8} {item}")
    for line in _sources(card):
        say(f"source   {line}")
    for one in known:
        say(f"\n{one.name}: {_value(one, card)}")
        kind = f"{words(one.kind)}: " if one.kind is not Any else ""
        for line in folded(kind + one.about, 2):
            say(f"  {line}")


def _sources(card: Card) -> Iterator[str]:
    """Where what a card reads comes from, a line for each file: address, size, licence, and gate."""
    for source in Registry().sources(card):
        terms = f"{source.license}; gate: {source.gate}" if source.gate else source.license
        every: list[File | None] = [*source.files]
        for file in every or [None]:
            size = downloads.told(file.size if file else source.size)
            name = f" {file.name}" if file and not source.url else ""
            yield f"{source.address(file)}{name}, {size}, {terms}"


def arguments(card: Card) -> list[Argument]:
    """The arguments of a card's class, as its text says; none of a class whose text cannot be read."""
    try:
        return of(card.target) or []
    except definitions.Absent:
        return []


def _as_json(one: Argument, card: Card) -> dict[str, Any]:
    """An argument with its value: the card's, else the class's default, where it is a plain value; else None."""
    given = one.name in GIVEN.get(card.family, ())
    default = None if one.default is None else literal(one.default)
    return {
        "name": one.name,
        "type": None if one.kind is Any else words(one.kind),
        "value": card.args.get(one.name, default),
        "default": default,
        "needed": one.default is None and not given,
        "by_stage": given,
        "about": one.about,
    }


def literal(text: str) -> Any:
    """What a default's text stands for; the text itself where that is no plain value."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _sources_json(card: Card) -> list[dict[str, Any]]:
    return [downloads.as_json(source) for source in Registry().sources(card)]


def _value(one: Argument, card: Card) -> str:
    if one.name in card.args:
        here = repr(card.args[one.name])
        return here if one.default in (None, here) else f"{here}   (the class's own: {one.default})"
    if one.name in GIVEN.get(card.family, ()):
        return "given by the stage"
    return "needed" if one.default is None else one.default


def table(rows: list[dict[str, Any]]) -> None:
    """Columns as wide as they need to be, so that no name is broken; the last one is folded between words."""
    if not rows:
        return
    cells = [{key: one_line(_cell(cell)) for key, cell in row.items()} for row in rows]
    *before, last = rows[0]
    wide = {key: max(len(key), *(len(row[key]) for row in cells)) for key in before}
    indent = sum(wide.values()) + len(GAP) * len(wide)
    for row in [{key: key for key in rows[0]}, *cells]:
        first, *more = folded(row[last], indent) or [""]
        say("".join(f"{row[key]:<{wide[key]}}{GAP}" for key in before) + first if first else row[before[0]])
        for line in more:
            say(" " * indent + line)


def _cell(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
