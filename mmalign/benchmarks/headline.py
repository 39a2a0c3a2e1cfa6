"""A headline as a function of its questions: any choice of them has one, and so an interval."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from mmalign.benchmarks import Parts, Score

SCALES = (1.0, 0.01, 100.0)  # some tools print fractions of what they count in percent


@dataclass(frozen=True)
class Headline:
    """The mean over some parts of Σ numerators / Σ denominators; `least`: the smallest of these instead.

    A mean has denominators of 1. F1 is such a ratio, too: 2 TP / (2 TP + FP + FN). A part without questions counts 0.
    """

    parts: Parts
    least: bool = False

    @classmethod
    def of(cls, score: Score) -> "Headline | None":
        """What a score's headline is made of; None where it does not say: it is no mean of its items then."""
        value = score.metrics.get(score.headline)
        if value is None or not math.isfinite(value):
            return None
        if score.parts:
            known = [cls(score.parts, score.least)]
        else:
            known = [cls.mean({qid: scale * item for qid, item in score.items.items()}) for scale in SCALES]
        try:
            return next((one for one in known if one.keys and math.isclose(one.value, value, abs_tol=1e-9)), None)
        except (OverflowError, ValueError):  # numbers that no score has
            return None

    @classmethod
    def mean(cls, items: Mapping[str, float]) -> "Headline":
        """The mean of {question id: value}."""
        return cls({"": {qid: (value, 1.0) for qid, value in items.items()}})

    @cached_property
    def value(self) -> float:
        ratios = [_ratio([*own.values()]) for own in self.parts.values()]
        return min(ratios) if self.least else fmean(ratios)

    @cached_property
    def keys(self) -> frozenset[tuple[str, str]]:
        """(part, question id) of all that counts."""
        return frozenset((part, qid) for part, own in self.parts.items() for qid in own)

    @cached_property
    def parts_of(self) -> dict[str, tuple[str, ...]]:
        """{question id: the parts it counts in}."""
        parts_of: dict[str, list[str]] = {}
        for part, own in self.parts.items():
            for qid in own:
                parts_of.setdefault(qid, []).append(part)
        return {qid: tuple(parts) for qid, parts in parts_of.items()}

    def in_order_of(self, other: "Headline") -> "Headline":
        """The same parts, in another's order."""
        return Headline({part: self.parts.get(part, {}) for part in {**other.parts, **self.parts}}, self.least)

    def renamed(self, names: Mapping[str, str]) -> "Headline":
        """Of some questions only, under other names. Those that get one name are copies of one, and counted once: as
        their mean."""
        return Headline({part: _merged(own, names) for part, own in self.parts.items()}, self.least)


def _merged(own: Mapping[str, Collection[float]], names: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    copies: dict[str, list[Collection[float]]] = {}
    for qid, pair in own.items():
        if qid in names:
            copies.setdefault(names[qid], []).append(pair)
    return {name: _mean(pairs) for name, pairs in copies.items()}


def _mean(pairs: list[Collection[float]]) -> tuple[float, float]:
    above, below = zip(*pairs, strict=True)
    return (above[0], below[0]) if len(pairs) == 1 else (fmean(above), fmean(below))


def _ratio(pairs: list[Collection[float]]) -> float:
    if not pairs:
        return 0.0
    above, below = map(math.fsum, zip(*pairs, strict=True))
    return above / below if below else 0.0
