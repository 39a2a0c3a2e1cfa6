"""Does what cards refer to exist: classes, their arguments, files? Read from source and disk; nothing is imported."""

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from mmalign.errors import CardError, CheckError, MMAlignError, suggest
from mmalign.io import files, packaged
from mmalign.plan import definitions, signatures, trust
from mmalign.plan.cards import Card, members
from mmalign.plan.graph import named
from mmalign.plan.recipe import Part, Recipe

# arguments a part gets from the stage, not from its card
GIVEN = {"adapters": ("patch_dim", "llm_dim", "grid"), "labels": ("keep",)}


class NotThereError(CheckError):
    """Something that a recipe needs besides itself, and that is not there yet."""


class NoFileError(NotThereError):
    """A file or folder of the user's data folder."""


def targets(recipe: Recipe, name: str, cards: dict[str, Card]) -> Iterator[MMAlignError]:
    """Does each card name something that exists, and does that take the card's arguments? Read, not imported."""
    own = {role: (part, key) for role, _, part, key in named(recipe, name)}
    for role, card in cards.items():
        part, key = own.get(role, (Part(card.name), ""))
        try:
            takes = signatures.takes(card.target)
            if trust.of_family(card.target, card.family) is False:
                yield trust.no_part(card.target, card.family, card.name, f"{card.path}  target")
                continue
        except definitions.Absent as err:
            yield CheckError(f"{card.family} {card.name!r}: {err}", at=f"{card.path}  target", fix="check `target:`")
            continue
        if takes is not None:
            places = {arg: recipe.where(f"{key}.args.{arg}") for arg in part.args}
            if getattr(recipe.stages[name], "fit", None):  # the encoder's, which is no argument in the recipe
                places.setdefault("fit", recipe.where(f"stages.{name}.fit"))
            yield from _arguments(card, takes, places)
            yield from _lacking(card, takes, recipe.where(key))
            for arg, what in signatures.mistyped(card.target, card.args):
                at = places.get(arg, f"{card.path}  args.{arg}")
                yield CheckError(f"{card.family} {card.name!r}: {arg} {what}", at=at, fix=signatures.ARGS)
        for number, one in members(card):
            try:
                takes = signatures.takes(one.target) if one.target else None
            except definitions.Absent as err:
                yield CheckError(f"{card.name!r}, member {number}: {err}", at=recipe.where(key), fix="{card: NAME}")
                continue
            if one.target and trust.of_family(one.target, card.family) is False:
                yield trust.no_part(one.target, card.family, f"{card.name}/{number}", recipe.where(key))
                continue
            for arg in set(one.args).difference(takes) if takes is not None else ():
                what = f"{card.family} {card.name!r}, member {number} takes no argument {arg!r}"
                yield CheckError(what, at=recipe.where(key), fix=suggest(arg, takes or ()))


def _arguments(card: Card, takes: signatures.Arguments, places: dict[str, str]) -> Iterator[MMAlignError]:
    """Arguments a part does not take. places: where the recipe gives one; the others stand in the card."""
    by_stage = GIVEN.get(card.family, ())
    for arg in card.args:
        at = places.get(arg, f"{card.path}  args.{arg}")
        if arg in by_stage:
            yield CheckError(f"{card.family} {card.name!r}: {arg!r} is set by the stage", at=at, fix="take it out")
        elif arg not in takes:
            what = f"{card.family} {card.name!r} takes no argument {arg!r}"
            yield CheckError(what, at=at, fix=suggest(arg, set(takes).difference(by_stage)))


def _lacking(card: Card, takes: signatures.Arguments, at: str) -> Iterator[MMAlignError]:
    for arg, needed in takes.items():
        if needed and arg not in card.args and arg not in GIVEN.get(card.family, ()):
            fix = f"{{card: {card.name}, args: {{{arg}: ...}}}}"
            yield CheckError(f"{card.family} {card.name!r} needs the argument {arg!r}", at=at, fix=fix)


def paths(recipe: Recipe, name: str, cards: dict[str, Card]) -> Iterator[MMAlignError]:
    """Do the files and folders that a stage's cards name exist? Told where the recipe names one, or else the card."""
    own = {role: (part, key) for role, _, part, key in named(recipe, name)}
    for role, card in cards.items():
        part, where = own.get(role, (Part(card.name), ""))
        for key, spec in [*card.args.items(), *(pair for _, one in members(card) for pair in one.args.items())]:
            at = recipe.where(f"{where}.args.{key}") if key in part.args else f"{card.path}  args.{key}"
            if isinstance(spec, str) and spec.startswith(packaged.PREFIX):
                yield from _packaged(card, key, spec, at)
            elif isinstance(spec, str) and (place := files.local(spec)) and not files.exists(sure(place)):
                what = f"{card.family} {card.name!r}: {key} {spec} does not exist"
                if spec.startswith("data:"):
                    yield NoFileError(what, at=at, fix=f"mmalign data get {card.name}, or set MMALIGN_DATA")
                else:
                    yield CheckError(what, at=at, fix="check the path")


def _packaged(card: Card, key: str, spec: str, at: str) -> Iterator[MMAlignError]:
    """Is there such a model, and the package that reads it? The model itself is not read."""
    try:
        packaged.readable(spec)
    except CardError as err:
        what = f"{card.family} {card.name!r}: {key} {spec}: {err.what}"
        yield CheckError(what, at=at, fix=err.fix)


def sure(place: Path) -> Path:
    """The part of a path that must be there, where the rest is a pattern: shards/{000..099}.tar."""
    fixed = takewhile(lambda part: not set(part) & {"*", "{"}, place.parts)
    return place if files.exists(place) else Path(*fixed)
