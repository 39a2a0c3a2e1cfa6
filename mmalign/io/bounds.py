"""Bounds of arguments: a class declares what its numbers may be, and `check` reads it from the class's source.

    class Part:
        bounds = {"rank": {"least": 1, "whole": True, "words": "a rank of 1 or more", "example": 16}}

least, above, most, below: limits. whole: a whole number. among: nothing but these. words: how a reader is told.
example: what to try. Literals only, so that they can be read without importing the class; None stands for `left out`
and is always allowed. Families and `plan` both use this file, so that it may import neither.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mmalign.errors import CardError

Bounds = Mapping[str, Mapping[str, Any]]


def broken(bounds: Bounds, args: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(argument, what is wrong, what to try) of every argument outside its bounds."""
    for arg, bound in bounds.items():
        value = args.get(arg)
        if value is not None and not within(bound, value):
            yield arg, f"{arg} is {bound['words']}, not {value!r}", f"{arg}: {bound['example']}"


def within(bound: Mapping[str, Any], value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return (
        (value in bound["among"] if "among" in bound else True)
        and (isinstance(value, int) or not bound.get("whole"))
        and ("least" not in bound or value >= bound["least"])
        and ("above" not in bound or value > bound["above"])
        and ("most" not in bound or value <= bound["most"])
        and ("below" not in bound or value < bound["below"])
    )


def check(bounds: Bounds, **args: Any) -> None:
    """Raise a CardError for the first argument outside its bounds."""
    for arg, what, fix in broken(bounds, args):
        raise CardError(what, at=f"args.{arg}", fix=fix)


def layer(value: object, depth: int | None = None, name: str = "the language model") -> tuple[str, str] | None:
    """(what is wrong, what to try) with the number of one layer, or `last`; depth, name: as for `layers`."""
    fix = f"layer: last, or 0 (what goes in) to {'the last' if depth is None else depth}"
    if value == "last":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return f"layer must be a whole number of at least 0, or last, got {value!r}", fix
    return (f"layer is {value}, and {name} has {depth}", fix) if depth is not None and value > depth else None


def layers(value: object, depth: int | None = None, name: str = "the language model") -> tuple[str, str] | None:
    """(what is wrong, what to try) with a number of first layers; None, which means half of them, is always right.

    depth: how many layers there are; None: not known. name: whose they are.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        what = f"layers must be a whole number of at least 1, got {value!r}"
        return what, "layers: 1 to all of the language model's; the paper takes half"
    if depth is not None and value > depth:
        return f"layers is {value}, and {name} has {depth}", f"layers: 1 to {depth}; the paper takes half, {depth // 2}"
    return None
