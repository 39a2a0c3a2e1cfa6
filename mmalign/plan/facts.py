"""What is known of a part before it is built: its card's facts, and what its class says of itself, read from source.

A card and its class must agree: the class is what runs, so a fact that contradicts it would let `check` pass what the
worker refuses. Facts alone count where the class does not tell: a function, a compiled module, an attribute that an
instance sets when it is built.
"""

from collections.abc import Iterator
from typing import Any

from mmalign.errors import CheckError
from mmalign.plan import signatures
from mmalign.plan.cards import Card

# class attributes of the contracts that `check` asks for, by family
ATTRIBUTES = {
    "adapters": ("keeps_grid",),
    "labels": ("needs",),
    "objectives": ("needs", "per_patch", "unit"),
    "benchmarks": ("protocols", "shows"),
}


def of(card: Card) -> dict[str, Any]:
    """Facts of a card, and those of its class that the card leaves out."""
    return {**declared(card), **card.facts}


def declared(card: Card) -> dict[str, Any]:
    """What a card's class says of itself, as facts: lists for tuples and sets; `truth` for the needs of a source."""
    names = ATTRIBUTES.get(card.family, ())
    values = {name: signatures.attribute(card.target, name) for name in names}
    known = {name: _plain(value) for name, value in values.items() if not signatures.untold(value)}
    if card.family == "labels":
        return {"truth": known["needs"] == "truth"} if "needs" in known else {}
    return known


def contradicted(card: Card) -> Iterator[CheckError]:
    """Facts that the class denies."""
    for name, value in declared(card).items():
        told = card.facts.get(name, value)
        if _plain(told) != value:
            what = f"{card.family} {card.name!r}: the card says {name}: {told}, its class {value}"
            yield CheckError(what, at=f"{card.path}  facts.{name}", fix=f"take {name} out: it is read from the class")


def _plain(value: Any) -> Any:
    """Collections as sorted lists: their order says nothing here."""
    return sorted(value, key=str) if isinstance(value, (set, frozenset, tuple, list)) else value
