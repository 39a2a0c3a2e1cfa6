"""Cards: one YAML file for every part a recipe can name; found through three doors, built by name.

    registry/vision/siglip-so400m-384.yaml   is the part 'siglip-so400m-384' of the family 'vision'

The doors: the cards shipped here, a shelf of the user's own ($MMALIGN_REGISTRY or `registry:` in a recipe), and
installed packages: an entry point of the group `mmalign.<family>` names one class, one of the group `mmalign.cards` a
folder of cards in the package. Reading cards imports no part and no package; building one imports only the class it
names.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mmalign.errors import CardError, suggest
from mmalign.io import files, packaged, packages, yaml
from mmalign.plan import definitions, downloads, fact_types, installed, signatures, trust
from mmalign.plan.downloads import Source

FAMILIES = tuple(trust.CONTRACTS)
# arguments of a card that name another card: (argument, in these families, the family it names)
INNER = (("encoder", ("labels", "objectives", "vision"), "vision"), ("data", ("benchmarks",), "data"))
SHIPPED = "mmalign"


@dataclass
class Card:
    summary: str
    target: str  # dotted path of a class of the family: package.module.Name
    args: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)  # what the built part promises: dim, grid, ...
    paper: str = ""
    license: str = ""
    source: list[Source] = field(default_factory=list)  # where what it reads comes from, see downloads.py
    name: str = ""
    family: str = ""
    origin: str = SHIPPED  # who brings it: mmalign, a shelf, or a package and its version
    path: str = ""


@dataclass
class ForeignCard(Card):
    """A card out of a file that may come from others: stage.yaml, mmalign.json. It is built once it is adopted."""


_TYPES: dict[str, type] = {
    "summary": str, "target": str, "args": dict, "facts": dict, "paper": str, "license": str,
    "packaged": dict,  # arguments that count where the package they name is installed
    "source": object,  # see downloads.py
}  # fmt: skip


_WORDS: dict[type, str] = {str: "text", dict: "a mapping"}
_FIXES: dict[type, str] = {str: "put it in quotes", dict: "{name: value}"}
SOURCE = "{hub: OWNER/NAME, license: ..., size: 13.5 GB}   (mmalign show llms vicuna-7b)"


def _environment() -> list[str]:
    """The shelves of the user's own."""
    return [folder for folder in os.environ.get("MMALIGN_REGISTRY", "").split(os.pathsep) if folder]


def shelves(extra: Iterable[str] = ()) -> list[tuple[str, Path]]:
    """(owner, folder) of every folder of cards, ours first."""
    extra = list(extra)
    own = [*extra, *_environment()]
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
    """The parts one command can see; `shelf` adds folders to those of $MMALIGN_REGISTRY: a recipe's own `registry:`.

    What a recipe brings may come from others: a card of such a shelf names a class that is one of its family as its
    text says, and nothing of it is imported to find out.
    """

    def __init__(self, shelf: Iterable[str] = ()) -> None:
        shelf = list(shelf)
        self.shelves = shelves(shelf)
        self._brought = _owners(shelf) - _owners(_environment())  # by a recipe
        self._owners: dict[str, dict[str, tuple[str, Any]]] = {}
        self._cards: dict[tuple[str, str], Card] = {}

    def names(self, family: str) -> list[str]:
        return sorted(self._family(family))

    def every(self, family: str) -> Iterator[Card]:
        return (self.card(family, name) for name in self.names(family))

    def card(self, family: str, name: str) -> Card:
        """The part of exactly this name, or a CardError that suggests the nearest."""
        known = self._family(family)
        if name not in known:
            raise CardError(f"no {family} card named {name!r}", fix=f"{suggest(name, known)}   (mmalign list {family})")
        card, owner = self._read(family, name)
        if owner in self._brought and _told(card) is None:
            trust.allow(family, name, card.target, f"{card.path}  target")
        return card

    def sources(self, card: Card, above: tuple[str, ...] = ()) -> list[Source]:
        """Where what a card reads comes from, the cards followed that it says it is `like`. A CardError for no card."""
        whole: list[Source] = []
        for one in card.source:
            if not one.like:
                whole.append(one)
                continue
            family, _, name = one.like.partition("/")
            if one.like in above:
                raise CardError(f"the source of {one.like} is like itself", at=card.path, fix="like: another card")
            whole += downloads.wanted(self.sources(self.card(family, name), (*above, one.like)), one)
        return whole

    def adopted(self, card: Card) -> Card:
        """A card out of a file that may come from others as one that may be built; the members of a mixture, too.

        Its class is one of mmalign's, or one that a card or package here names: called by that name, whatever else it
        is called elsewhere, so that no other module is imported. Raises CardError for anything else; of a class of
        the right family --allow-code makes a warning.
        """
        if card.family in FAMILIES:
            own = replace(card, target=self._known_target(card))
        elif card.family == "checkpoints" and card.target in trust.OPENERS:
            own = card
        else:
            what = f"{card.name or 'a card'!r} is {card.target}, a part of no family"
            raise CardError(what, at=card.path, fix="family: " + " | ".join(FAMILIES))
        return self.filled(Card(**vars(own)))

    def _known_target(self, card: Card) -> str:
        defined = trust.resolved(card.target)
        if trust.ours(defined, card.family):
            return defined
        known = self._targets(card.family)
        for target in (card.target, defined):
            if target in known:
                return target
        _told(card)
        trust.allow(card.family, card.name, card.target, card.path)
        return card.target

    def _targets(self, family: str) -> set[str]:
        """What cards and packages name of a family, and what that stands for; of what a recipe brings, only classes."""
        targets = set()
        for card, owner in (self._read(family, name) for name in self.names(family)):
            with suppress(CardError):
                if owner not in self._brought or _told(card):
                    targets |= {card.target, trust.resolved(card.target)}
        return targets

    def _read(self, family: str, name: str) -> tuple[Card, str]:
        """(a card of its own for whoever asks, who brings it); its file is read once."""
        owner, place = self._family(family)[name]
        if (family, name) not in self._cards:
            self._cards[family, name] = (read if isinstance(place, Path) else _from_entry_point)(place, family, owner)
        return deepcopy(self._cards[family, name]), owner

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
        return replace(card, args={**card.args, "data": [self.member(one) for one in members]})

    def member(self, member: Any) -> Any:
        """A member of a mixture as {target, args}; one of a `kind` as it is. See `filled`."""
        member = {"card": member} if isinstance(member, str) else member
        if not isinstance(member, dict) or not {"card", "target"} & set(member):
            return member
        if "card" not in member:
            return _as_member(self.adopted(_of_member(member)))
        for key in member:
            if key not in ("card", "args"):
                fix = f"{{card: {member['card']}, args: {{{key}: ...}}}}"
                raise CardError(f"a member of a mixture has `card` and `args`, and no {key!r}", fix=fix)
        own = self.card("data", str(member["card"]))
        return _as_member(self.filled(replace(own, args={**own.args, **(member.get("args") or {})})))

    def _family(self, family: str) -> dict[str, tuple[str, Any]]:
        if family not in FAMILIES:
            raise CardError(f"no family {family!r}", fix=suggest(family, FAMILIES))
        if family not in self._owners:
            owners: dict[str, tuple[str, Any]] = {}
            for name, owner, place in [*self._on_shelves(family), *installed.parts(family)]:
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
        for owner, shelf in [*self.shelves, *installed.shelves()]:
            for place in sorted((shelf / family).glob("*.yaml")):
                yield place.stem, owner, place


def _owners(folders: Iterable[str]) -> set[str]:
    """The owners of cards on some shelves."""
    return {f"shelf {Path(folder).resolve()}" for folder in folders}


def _told(card: Card) -> bool | None:
    """Whether a card's class is one of its family, as its text says; None where that does not tell.

    Raises CardError for what is none, and for what is not there.
    """
    at = f"{card.path}  target"
    try:
        told = trust.of_family(card.target, card.family)
    except definitions.Absent as err:
        what = f"{card.family} {card.name!r} is {card.target}: {err}"
        fix = _beside(card) or "check `target:`, or install the package that brings it"
        raise CardError(what, at=at, fix=fix) from err
    if told is False:
        raise trust.no_part(card.target, card.family, card.name, at)
    return told


def _beside(card: Card) -> str:
    """What makes a module importable that lies in the working folder, or in or beside the card's shelf; "" for none."""
    top = card.target.partition(".")[0]
    for place in (Path.cwd(), *Path(card.path).absolute().parents[:3]):
        if (place / f"{top}.py").is_file() or (place / top / "__init__.py").is_file():
            found = packages.spec(top)
            return "" if found else f"export PYTHONPATH={os.path.relpath(place)}"
    return ""


def _of_member(member: Mapping[str, Any]) -> Card:
    """A member of a mixture that names its class, as a card."""
    args = member.get("args") or {}
    if not isinstance(args, dict):
        raise CardError(f"`args` of a member must be a mapping, got {args!r}", fix="args: {name: value}")
    return Card("", str(member["target"]), args, name="a member", family="data")


def _as_member(card: Card) -> dict[str, Any]:
    return {"target": card.target, "args": card.args}


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
    family = family or place.parent.name
    if wrong := fact_types.problem(family, document.raw.get("facts", {})):
        key, what = wrong
        fix = "what the part does; a fact that is not known is left out"
        raise CardError(f"the card {place.stem!r}: {key} {what}", at=document.where(f"facts.{key}"), fix=fix)
    given = {**document.raw.get("args", {}), **_installed(document.raw.pop("packaged", {}))}
    raw = {**document.raw, "args": files.anchored(given, place.parent), "source": _sources(document)}
    return Card(**raw, name=place.stem, family=family, origin=owner, path=str(place))


def _sources(document: yaml.Document) -> list[Source]:
    """The sources of a card's file, or a CardError at the key that is wrong."""
    if document.raw.get("source") is None:
        return []
    try:
        return downloads.read(document.raw["source"])
    except downloads.Wrong as err:
        key = f"source.{err.key}".rstrip(".")
        raise CardError(f"{key} {err.what}", at=document.where(key), fix=SOURCE) from err


def as_dict(card: Card) -> dict[str, Any]:
    """A card as files keep it that travel: without its sources, which only the card's own file tells."""
    return {key: value for key, value in asdict(card).items() if key != "source"}


def _installed(args: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a card's arguments `packaged` of which the package is installed: `gguf:PACKAGE`."""
    named = {key: str(spec).removeprefix(packaged.PREFIX) for key, spec in args.items()}
    return {key: args[key] for key, package in named.items() if packages.folder(package)}


def foreign(raw: Mapping[str, Any], file: Path, role: str) -> ForeignCard:
    """A card as a file has it that may come from others; TypeError for what is none."""
    card = ForeignCard(**{**raw, "source": [], "path": f"{file}  cards.{role}"})
    for name, kind in (("target", str), ("args", dict), ("name", str), ("family", str)):
        if not isinstance(getattr(card, name), kind):
            raise TypeError(f"{name!r} of the card {role!r} is {getattr(card, name)!r}")
    return card


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
