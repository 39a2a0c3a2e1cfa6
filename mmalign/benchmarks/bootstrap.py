"""How sure a score is, and whether two runs differ: seeded bootstrap and sign-flip test over a score's items.

Items are resampled, so an interval is about other questions of this kind, not about other seeds of training. Give
items that stand for themselves: MMBench's are whole groups of rotations. Items with equal values are
interchangeable, so a resample is drawn as counts of values: the same distribution, whatever the number of items.
"""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from mmalign.errors import DataError

if TYPE_CHECKING:
    from numpy import ndarray


class Interval(NamedTuple):
    """A mean with its percentile interval, in the unit of the items."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """A paired difference with its percentile interval, in the unit of the items."""

    mean: float  # the second run minus the first
    low: float
    high: float
    p: float  # two-sided: how often random signs give a difference at least this large


def interval(items: Mapping[str, float], level: float = 0.95, draws: int = 10_000, seed: int = 0) -> Interval:
    """The mean of {question id: value} with its percentile interval; DataError where there are none.

    level: how much of the resamples lies between its ends. draws: how many resamples.
    """
    import numpy as np  # only where intervals are asked for

    if not items:
        raise DataError("no items: an interval needs the values of single questions")
    values, counts = map(np.array, zip(*sorted(Counter(map(float, items.values())).items()), strict=True))
    low, high = _quantiles(values, counts, level, draws, seed)
    return Interval(float(values @ counts / counts.sum()), low, high)


def difference(
    first: Mapping[str, float], second: Mapping[str, float], level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Difference:
    """What the second run has over the first, paired by question; DataError where their questions differ."""
    import numpy as np

    if first.keys() != second.keys():
        unpaired = len(first.keys() ^ second.keys())
        fix = "score both on the same data"
        raise DataError(f"the runs answered different questions: {unpaired} are in one only", fix=fix)
    if not first:
        raise DataError("no items: an interval needs the values of single questions")
    steps = np.array([second[name] - first[name] for name in first]).round(12)  # 12: equal differences stay equal
    values, counts = np.unique(steps, return_counts=True)
    low, high = _quantiles(values, counts, level, draws, seed)
    return Difference(float(steps.mean()), low, high, _sign_flip(steps, draws, seed))


def _quantiles(values: "ndarray", counts: "ndarray", level: float, draws: int, seed: int) -> tuple[float, float]:
    """The ends of the interval that holds `level` of the means of resampled items."""
    import numpy as np

    size = counts.sum()
    resamples = np.random.default_rng(seed).multinomial(size, counts / size, size=draws)
    low, high = np.quantile(resamples @ values / size, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _sign_flip(steps: "ndarray", draws: int, seed: int) -> float:
    """Under no difference every sign is as likely as the other; the observed signs count as one draw."""
    import numpy as np

    sizes, counts = np.unique(np.abs(steps), return_counts=True)
    plus = np.random.default_rng(seed).binomial(counts, 0.5, size=(draws, len(counts)))
    sums = np.abs((2 * plus - counts) @ sizes)
    return float((1 + (sums >= abs(steps.sum()) - 1e-9).sum()) / (1 + draws))
