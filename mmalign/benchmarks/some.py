"""A few of many items: from all over, and always the same."""

from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import TypeVar

T = TypeVar("T")


def some(items: Sequence[T], most: int | None) -> list[T]:
    """At most so many, in their order: one drawn from each of as many equal parts. None: all.

    Drawn, since every n-th would often be of one kind: POPE's questions are to be said yes and no to by turns.
    """
    if most is None or most >= len(items):
        return list(items)
    random, bounds = Random(0), [len(items) * part // most for part in range(most + 1)]
    return [items[random.randrange(low, high)] for low, high in pairwise(bounds)]
