"""Cards: one YAML file for every part a recipe can name; found through three doors, built by name.

    registry/vision/siglip-so400m-384.yaml   is the part 'siglip-so400m-384' of the family 'vision'

The doors: the cards shipped here, a shelf of the user's own ($MMALIGN_REGISTRY or `registry:` in a recipe), and
installed packages: an entry point of the group `mmalign.<family>` names one class, one of the group `mmalign.cards` a
folder of cards in the package. Reading cards imports no part and no package; building one imports only the class it
names.
"""

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from mmalign.errors import CardError, suggest
from mmalign.io import files, yaml
from mmalign.plan import signatures

# family: the classes of `mmalign.<family>` of which a part must be one
CONTRACTS: dict[str, tuple[str, ...]] = {
    "vision": ("Vision",),
    "adapters": ("Adapter",),
    "llms": ("LLM",),
    "labels": ("LabelSource",),
    "objectives": ("Objective",),
    "data": ("Data",),
    "benchmarks": ("Benchmark", "Probe"),
}
FAMILIES = tuple(CONTRACTS)
# arguments of a card that name another card: (argument, in these families, the family it names)
INNER = (("encoder", ("labels", "vision"), "vision"), ("data", ("benchmarks",), "data"))
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

    def inside(self, card: Card, above: tuple[tuple[str, str], ...] = ()) -> dict[str, Card]:
        """The cards that a card's arguments name, and those that they name: {"encoder": card, "encoder.encoder": ...}.

        Raises CardError at the argument for a name that is no card, and for a card that would be inside itself.
        """
        inner: dict[str, Card] = {}
        above = (*above, (card.family, card.name))
        for arg, family, name in named_inside(card):
            at = f"{card.path}  args.{arg}"
            if (family, name) in above:
                fix = f"another {family} card for its {arg}"
                raise CardError(f"{family} {name!r} would be inside itself", at=at, fix=fix)
            try:
                own = self.filled(self.card(family, name))
            except CardError as err:
                raise CardError(err.what, at=err.at or at, fix=err.fix) from err
            inner |= {arg: own} | below(arg, self.inside(own, above))
        return inner

    def filled(self, card: Card) -> Card:
        """A mixture's card, its members that are named by cards as {target, args}: so it says all that it is made of.

        They are named as `NAME` or `{card: NAME, args: {...}}`; a CardError where there is none of that name.
        """
        members = card.args.get("data")
        if card.family != "data" or not isinstance(members, list):
            return card
        return replace(card, args={**card.args, "data": [self._member(one) for one in members]})

    def _member(self, member: Any) -> Any:
        member = {"card": member} if isinstance(member, str) else member
        if not isinstance(member, dict) or "card" not in member:
            return member
        for key in member:
            if key not in ("card", "args"):
                fix = f"{{card: {member['card']}, args: {{{key}: ...}}}}"
                raise CardError(f"a member of a mixture has `card` and `args`, and no {key!r}", fix=fix)
        own = self.card("data", str(member["card"]))
        own = self.filled(replace(own, args={**own.args, **(member.get("args") or {})}))
        return {"target": own.target, "args": own.args}

    def _family(self, family: str) -> dict[str, tuple[str, Any]]:
        if family not in FAMILIES:
            raise CardError(f"no family {family!r}", fix=suggest(family, FAMILIES))
        if family not in self._owners:
            owners: dict[str, tuple[str, Any]] = {}
            for name, owner, place in [*self._on_shelves(family), *_entry_points(family)]:
                if name in owners:
                    raise CardError(
                        f"two {family} parts are named {name!r}: one from {owners[name][0]}, one from {owner}",
                        at=str(getattr(place, "value", place)),
                        fix="rename one of them or uninstall its package",
                    )
                owners[name] = (owner, place)
            self._owners[family] = owners
        return self._owners[family]

    def _on_shelves(self, family: str) -> Iterator[tuple[str, str, Any]]:
        for owner, shelf in [*self.shelves, *_package_shelves()]:
            for place in sorted((shelf / family).glob("*.yaml")):
                yield place.stem, owner, place


def _package_shelves() -> Iterator[tuple[str, Path]]:
    """(owner, folder) of the cards that packages bring: an entry point in `mmalign.cards` names the folder."""
    for owner, points in _installed().items():
        for point in points:
            if point.group == "mmalign.cards":
                folder = signatures.folder_of(point.value.replace(":", ".").replace("/", "."))
                if folder is None:
                    at, fix = f"entry point {point.name!r} of {owner}", "a folder with vision/, adapters/, ... in it"
                    raise CardError(f"{owner} has no folder {point.value} of cards", at=at, fix=fix)
                yield owner, folder


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
    points_of: dict[str, list[Any]] = {}
    for place in _with_parts():
        from importlib.metadata import PathDistribution

        dist = PathDistribution(place)
        points = [point for point in dist.entry_points if point.group.startswith("mmalign.")]
        points_of.setdefault(f"{dist.metadata['Name']} {dist.version}", points)
    return points_of


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
    document = yaml.read(place, CardError)
    for key, item in document.raw.items():
        if key not in _TYPES:
            raise CardError(f"a card has no key {key!r}", at=document.where(str(key)), fix=suggest(str(key), _TYPES))
        if not isinstance(item, _TYPES[key]):
            what = f"{key!r} must be {_WORDS[_TYPES[key]]}, got {item!r}"
            raise CardError(what, at=document.where(key), fix=_FIXES[_TYPES[key]])
    required = [f.name for f in fields(Card) if f.default is MISSING and f.default_factory is MISSING]
    for key in required:
        if not document.raw.get(key):
            raise CardError(f"the card {place.stem!r} lacks {key!r}", at=str(place), fix=f"add `{key}: ...`")
    raw = {**document.raw, "args": files.anchored(document.raw.get("args", {}), place.parent)}
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


def named_inside(card: Card) -> Iterator[tuple[str, str, str]]:
    """(argument, family, name) of the cards that a card's arguments name; what holds / or : is a path."""
    for arg, families, family in INNER:
        name = card.args.get(arg)
        if card.family in families and isinstance(name, str) and not set("/:") & set(name):
            yield arg, family, name


def below(role: str, cards: Mapping[str, Any]) -> dict[str, Any]:
    """Cards put under a role: {"encoder": card} under labels is {"labels.encoder": card}."""
    return {f"{role}.{inner}": card for inner, card in cards.items()}


def inside(role: str, cards: Mapping[str, Any]) -> dict[str, Any]:
    """What of a stage's cards is inside that of a role: {"labels.encoder": card} is {"encoder": card} inside labels."""
    return {key.removeprefix(f"{role}."): card for key, card in cards.items() if key.startswith(f"{role}.")}


def members(card: Card, inside: str = "") -> Iterator[tuple[str, Card]]:
    """(number, card) of the data sets in a mixture, and in those within it: `1`, `1/0`. No target: it has a kind."""
    for number, one in enumerate(given if isinstance(given := card.args.get("data"), list) else []):
        args = one.get("args") if isinstance(one, dict) and "target" in one else one
        if isinstance(args, dict):
            own = replace(card, target=str(one.get("target", "")), args=args)
            yield f"{inside}{number}", own
            yield from members(own, f"{inside}{number}/")


def build(
    card: Card, /, *, inner: Mapping[str, Any] | None = None, registry: Registry | None = None, **given: Any
) -> Any:
    """The whole part a card names, the cards inside it built first.

    given: arguments only the caller knows (patch_dim, keep, ...), or a part that is there already for one that names
    a card (encoder=part), in place of the card's own. inner: cards, or parts, for the arguments that name cards, by
    argument and those inside them: {"encoder": card, "encoder.encoder": card}, as `inside(role, stage's cards)` gives.
    registry: where names are looked up that stand in neither; None: what every command can see.

    Raises CardError for a class that cannot be imported, arguments that do not fit it, a name inside that is no card,
    and a part that does not keep the contract of its family.
    """
    args = {**_without(card, given), **_members(card, registry), **_inner_parts(card, inner or {}, registry, given)}
    part = _called(card, args, given)
    _kept(part, card)
    return part


def _without(card: Card, given: Mapping[str, Any]) -> dict[str, Any]:
    """A card's arguments without the names of cards whose parts are given."""
    ready = {arg for arg, families, _ in INNER if card.family in families and arg in given}
    return {arg: value for arg, value in card.args.items() if arg not in ready}


def _inner_parts(
    card: Card, inner: Mapping[str, Any], registry: Registry | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """{argument: part} of the cards inside a card, built."""
    wanted = [arg for arg, families, _ in INNER if card.family in families and arg not in given]
    named = [arg for arg, _, _ in named_inside(card) if arg in wanted]
    if set(named) - inner.keys():
        inner = {**(registry or Registry()).inside(card), **inner}
    ready = {arg: inner[arg] for arg in wanted if arg in inner}
    return {
        arg: build(one, inner=inside(arg, inner), registry=registry) if isinstance(one, Card) else one
        for arg, one in ready.items()
    }


def _members(card: Card, registry: Registry | None) -> dict[str, list[Any]]:
    """The data sets of a mixture that cards name, built; those of a `kind` are the mixture's own to make."""
    members = card.args.get("data")
    if card.family != "data" or not isinstance(members, list):
        return {}
    if any(isinstance(one, str) or (isinstance(one, dict) and "card" in one) for one in members):
        members = (registry or Registry()).filled(card).args["data"]
    return {"data": [_member_part(card, number, one, registry) for number, one in enumerate(members)]}


def _member_part(card: Card, number: int, member: Any, registry: Registry | None) -> Any:
    if not isinstance(member, dict) or "target" not in member:
        return member
    own = replace(card, target=str(member["target"]), args=member.get("args") or {}, name=f"{card.name}/{number}")
    return build(own, registry=registry)


def _called(card: Card, args: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    import inspect  # here, because reading cards does without it

    make = target(card)
    try:
        inspect.signature(make).bind(**given, **args)
    except TypeError as err:
        signature = str(inspect.signature(make))
        raise CardError(f"{card.family} {card.name!r}: {err}", at=card.path, fix=f"it takes {signature}") from err
    return make(**given, **args)


def _kept(part: object, card: Card) -> None:
    """Refuse a part that is none of its family's; cards of no family promise nothing."""
    contract = importlib.import_module(f"mmalign.{card.family}") if card.family in CONTRACTS else None
    if contract and not isinstance(part, tuple(getattr(contract, name) for name in CONTRACTS[card.family])):
        names = " or ".join(CONTRACTS[card.family])
        what = f"{card.name!r} is a {type(part).__name__}, not a {contract.__name__}.{names}"
        raise CardError(what, at=card.path, fix=f"a {card.family} part subclasses {names}")
