"""Cards: one YAML file for every part a recipe can name; found through three doors, built by name.

    registry/vision/siglip-so400m-384.yaml   is the part 'siglip-so400m-384' of the family 'vision'

The doors: the cards shipped here, a shelf of the user's own ($MMALIGN_REGISTRY or `registry:` in a recipe), and the
entry points of installed packages (group `mmalign.<family>`). Reading cards imports no part; building one imports
only the class it names.
"""

import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from mmalign.errors import CardError, suggest
from mmalign.io import files, yaml
from mmalign.plan import signatures

FAMILIES = ("vision", "adapters", "llms", "labels", "objectives", "data", "benchmarks")
SHIPPED = "mmalign"


@dataclass
class Card:
    summary: str
    target: str  # dotted path of a class or function: package.module.Name
    args: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)  # what the built part promises: dim, grid, ...
    paper: str = ""
    license: str = ""
    name: str = ""
    family: str = ""
    origin: str = SHIPPED  # who brings it: mmalign, a shelf, or a package and its version
    path: str = ""


_TYPES: dict[str, type] = {"summary": str, "target": str, "args": dict, "facts": dict, "paper": str, "license": str}


_WORDS: dict[type, str] = {str: "text", dict: "a mapping"}
_FIXES: dict[type, str] = {str: "put it in quotes", dict: "{name: value}"}


def shelves(extra: Iterable[str] = ()) -> list[tuple[str, Path]]:
    """(owner, folder) of every folder of cards, ours first."""
    extra = list(extra)
    own = [*extra, *filter(None, os.environ.get("MMALIGN_REGISTRY", "").split(os.pathsep))]
    for folder in own:
        if not files.exists(Path(folder)) or not Path(folder).is_dir():
            where = "MMALIGN_REGISTRY" if folder not in extra else "registry"
            raise CardError(f"no registry folder {folder}", at=where, fix="a folder with vision/, adapters/, ... in it")
    unique = dict.fromkeys(str(Path(folder).resolve()) for folder in own)
    return [(SHIPPED, shipped()), *((f"shelf {folder}", Path(folder)) for folder in unique)]


def shipped() -> Path:
    place = files.local("pkg:mmalign.registry/")
    assert place is not None
    return place


class Registry:
    """The parts one command can see; `shelf` adds folders to those of $MMALIGN_REGISTRY."""

    def __init__(self, shelf: Iterable[str] = ()) -> None:
        self.shelves = shelves(shelf)
        self._owners: dict[str, dict[str, tuple[str, Any]]] = {}

    def names(self, family: str) -> list[str]:
        return sorted(self._family(family))

    def every(self, family: str) -> Iterator[Card]:
        return (self.card(family, name) for name in self.names(family))

    def card(self, family: str, name: str) -> Card:
        """The part of exactly this name, or a CardError that suggests the nearest."""
        known = self._family(family)
        if name not in known:
            raise CardError(f"no {family} card named {name!r}", fix=f"{suggest(name, known)}   (mmalign list {family})")
        owner, place = known[name]
        return read(place, family, owner) if isinstance(place, Path) else _from_entry_point(place, family, owner)

    def filled(self, card: Card) -> Card:
        """A mixture's card, its members that are named by cards as {target, args}: so it says all that it is made of.

        They are named as `NAME` or `{card: NAME, args: {...}}`; a CardError where there is none of that name.
        """
        members = card.args.get("data")
        if card.family != "data" or not isinstance(members, list):
            return card
        return replace(card, args={**card.args, "data": [self._member(one) for one in members]})

    def _member(self, given: Any) -> Any:
        given = {"card": given} if isinstance(given, str) else given
        if not isinstance(given, dict) or "card" not in given:
            return given
        for key in given:
            if key not in ("card", "args"):
                fix = f"{{card: {given['card']}, args: {{{key}: ...}}}}"
                raise CardError(f"a member of a mixture has `card` and `args`, and no {key!r}", fix=fix)
        own = self.card("data", str(given["card"]))
        own = self.filled(replace(own, args={**own.args, **(given.get("args") or {})}))
        return {"target": own.target, "args": own.args}

    def _family(self, family: str) -> dict[str, tuple[str, Any]]:
        if family not in FAMILIES:
            raise CardError(f"no family {family!r}", fix=suggest(family, FAMILIES))
        if family not in self._owners:
            found: dict[str, tuple[str, Any]] = {}
            for name, owner, place in [*self._on_shelves(family), *_entry_points(family)]:
                if name in found:
                    raise CardError(
                        f"two {family} parts are named {name!r}: one from {found[name][0]}, one from {owner}",
                        at=str(getattr(place, "value", place)),
                        fix="rename one of them or uninstall its package",
                    )
                found[name] = (owner, place)
            self._owners[family] = found
        return self._owners[family]

    def _on_shelves(self, family: str) -> Iterator[tuple[str, str, Any]]:
        for owner, shelf in self.shelves:
            for place in sorted((shelf / family).glob("*.yaml")):
                yield place.stem, owner, place


def _entry_points(family: str) -> Iterator[tuple[str, str, Any]]:
    for owner, points in _installed().items():
        for point in points:
            if point.group == f"mmalign.{family}":
                yield point.name, owner, point


@cache
def _installed() -> dict[str, list[Any]]:
    """{package and version: its entry points of our groups}, without importing any of them.

    importlib.metadata is asked only about packages whose entry_points.txt names one of our groups: to ask it about
    all of them takes as long as the rest of a command.
    """
    found: dict[str, list[Any]] = {}
    for place in _with_parts():
        from importlib.metadata import PathDistribution

        dist = PathDistribution(place)
        points = [point for point in dist.entry_points if point.group.startswith("mmalign.")]
        found.setdefault(f"{dist.metadata['Name']} {dist.version}", points)
    return found


def _with_parts() -> Iterator[Path]:
    """Metadata folders of installed packages that bring parts; the first of a name hides the others."""
    seen: set[str] = set()
    for folder in dict.fromkeys(sys.path):
        try:
            names = sorted(name for name in os.listdir(folder or ".") if name.endswith((".dist-info", ".egg-info")))
        except OSError:
            continue  # a zip file, or not there
        for name in names:
            package = name.split("-")[0].removesuffix(".egg").lower()
            if package not in seen:
                seen.add(package)
                place = Path(folder) / name
                if "[mmalign." in _text(place / "entry_points.txt"):
                    yield place


def _text(place: Path) -> str:
    try:
        return place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _from_entry_point(point: Any, family: str, owner: str) -> Card:
    """An installed part has no card: its target is the entry point, its summary the target's docstring."""
    target = point.value.split("[")[0].strip().replace(":", ".")
    at = f"entry point of {owner}"
    return Card(signatures.summary(target), target, name=point.name, family=family, origin=owner, path=at)


def read(place: Path, family: str = "", owner: str = SHIPPED) -> Card:
    """One card file, its keys and types checked."""
    found = yaml.read(place, CardError)
    for key, item in found.raw.items():
        if key not in _TYPES:
            raise CardError(f"a card has no key {key!r}", at=found.where(str(key)), fix=suggest(str(key), _TYPES))
        if not isinstance(item, _TYPES[key]):
            what = f"{key!r} must be {_WORDS[_TYPES[key]]}, got {item!r}"
            raise CardError(what, at=found.where(key), fix=_FIXES[_TYPES[key]])
    required = [f.name for f in fields(Card) if f.default is MISSING and f.default_factory is MISSING]
    for key in required:
        if not found.raw.get(key):
            raise CardError(f"the card {place.stem!r} lacks {key!r}", at=str(place), fix=f"add `{key}: ...`")
    raw = {**found.raw, "args": files.anchored(found.raw.get("args", {}), place.parent)}
    return Card(**raw, name=place.stem, family=family or place.parent.name, origin=owner, path=str(place))


def target(card: Card) -> Any:
    """The class or function a card names, imported."""
    module, _, attr = card.target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attr)
    except ModuleNotFoundError as err:
        hint = f"pip install {err.name}" if err.name and not card.target.startswith(err.name) else "check `target:`"
        raise CardError(f"cannot import {card.target!r}: {err}", at=card.path, fix=hint) from err
    except (ImportError, AttributeError, ValueError) as err:
        raise CardError(f"cannot import {card.target!r}: {err}", at=card.path, fix="check `target:`") from err


def build(card: Card, **given: Any) -> Any:
    """Build the part a card names; `given` are the arguments only the caller knows."""
    import inspect  # here, because reading cards does without it

    make = target(card)
    try:
        inspect.signature(make).bind(**given, **card.args)
    except TypeError as err:
        signature = str(inspect.signature(make))
        raise CardError(f"{card.family} {card.name!r}: {err}", at=card.path, fix=f"it takes {signature}") from err
    return make(**given, **card.args)
