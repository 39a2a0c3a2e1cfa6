"""From a card to the part it names: its class, imported and looked at, and the part built, cards inside it first."""

import importlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from mmalign.errors import CardError, suggest
from mmalign.io import environment
from mmalign.plan import definitions, signatures, trust
from mmalign.plan.cards import INNER, Card, ForeignCard, Registry, inside, named_inside


def build(
    card: Card, /, *, inner: Mapping[str, Any] | None = None, registry: Registry | None = None, **given: Any
) -> Any:
    """The whole part a card names, the cards inside it built first.

    given: arguments only the caller knows (patch_dim, keep, ...), or a part that is there already for one that names
    a card (encoder=part), in place of the card's own. inner: cards, or parts, for the arguments that name cards, by
    argument and those inside them: {"encoder": card, "encoder.encoder": card}, as `inside(role, stage's cards)` gives.
    registry: where names are looked up that stand in neither; None: what every command can see.

    A card made in Python is the caller's own: its class may be any of its family. One that was read from a file that
    travels (a ForeignCard) is adopted first, and so names a class that the registry knows.

    Raises CardError for what is no such class or cannot be imported, arguments that do not fit it, and a name inside
    that is no card.
    """
    card = own(card, registry)
    make = target(card)
    args = {**_without(card, given), **_members(card, registry), **_inner_parts(card, inner or {}, registry, given)}
    return _called(make, card, args, given)


def build_all(named: Mapping[str, Card], inner: Mapping[str, Any], registry: Registry | None = None) -> dict[str, Any]:
    """The parts that some cards name, by name; what stands inside several of them, card for card, is built once.

    inner: the cards inside each, {"NAME.encoder": card, "NAME.encoder.encoder": card}. Raises CardError as `build`.
    """
    once: dict[str, Any] = {}
    parts = {}
    for name, card in named.items():
        below = inside(name, inner)
        ready = {}
        for arg, one in below.items():
            if "." not in arg:
                whole = {arg: one, **inside(arg, below)}
                key = repr([(role, each.target, each.args) for role, each in whole.items()])
                if key not in once:
                    once[key] = build(one, inner=inside(arg, below), registry=registry)
                ready[arg] = once[key]
        parts[name] = build(card, inner=ready, registry=registry)
    return parts


def own(card: Card, registry: Registry | None = None) -> Card:
    """The card itself; one out of a file that may come from others is adopted, or a CardError."""
    return (registry or Registry()).adopted(card) if isinstance(card, ForeignCard) else card


def _without(card: Card, given: Mapping[str, Any]) -> dict[str, Any]:
    """A card's arguments without the names of cards whose parts are given."""
    ready = {arg for arg, families, _ in INNER if card.family in families and arg in given}
    return {arg: environment.expanded(value) for arg, value in card.args.items() if arg not in ready}


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
    named = [isinstance(one, str) or (isinstance(one, dict) and "card" in one) for one in members]
    if any(named):
        registry = registry or Registry()
        members = [registry.member(one) if is_named else one for one, is_named in zip(members, named, strict=True)]
    return {"data": [_member_part(card, number, one, registry) for number, one in enumerate(members)]}


def _member_part(card: Card, number: int, member: Any, registry: Registry | None) -> Any:
    if not isinstance(member, dict) or "target" not in member:
        return member
    own = replace(card, target=str(member["target"]), args=member.get("args") or {}, name=f"{card.name}/{number}")
    return build(own, registry=registry)


def _called(make: Any, card: Card, args: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    import inspect  # here, because reading cards does without it

    known = inspect.signature(make).parameters
    for arg in args:
        if arg not in known and not any(one.kind is one.VAR_KEYWORD for one in known.values()):
            what = f"{card.family} {card.name!r} takes no argument {arg!r}"
            raise CardError(what, at=card.path, fix=suggest(arg, set(known).difference(given)))
    try:
        inspect.signature(make).bind(**given, **args)
    except TypeError as err:
        signature = str(inspect.signature(make))
        raise CardError(f"{card.family} {card.name!r}: {err}", at=card.path, fix=f"it takes {signature}") from err
    for arg, what in signatures.mistyped(card.target, {arg: args[arg] for arg in card.args if arg in args}):
        at = f"{card.path}  args.{arg}".strip()
        raise CardError(f"{card.family} {card.name!r}: {arg} {what}", at=at, fix=signatures.ARGS)
    return make(**given, **args)


def target(card: Card) -> Any:
    """The class a card names, imported and looked at: nothing of it is called. A card of no family names anything.

    Raises CardError for what cannot be imported, and for what is no class of the card's family; where its text says so
    it is not imported.
    """
    names = trust.CONTRACTS.get(card.family)
    if names:
        with suppress(definitions.Absent):  # made while Python runs, or not there, which the import says
            if trust.of_family(card.target, card.family) is False:
                raise trust.no_part(card.target, card.family, card.name, card.path)
    part = _imported(card)
    if names:
        contract = importlib.import_module(trust.home(card.family))
        if not isinstance(part, type) or not issubclass(part, tuple(getattr(contract, name) for name in names)):
            raise trust.no_part(card.target, card.family, card.name, card.path)
    return part


def _imported(card: Card) -> Any:
    module, _, attr = card.target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attr)
    except ModuleNotFoundError as err:
        hint = f"pip install {err.name}" if err.name and not card.target.startswith(err.name) else "check `target:`"
        raise CardError(f"cannot import {card.target!r}: {err}", at=card.path, fix=hint) from err
    except (ImportError, AttributeError, ValueError, TypeError) as err:  # TypeError: a name that begins with a dot
        raise CardError(f"cannot import {card.target!r}: {err}", at=card.path, fix="check `target:`") from err
