"""How sure a headline is, and whether two runs differ: seeded bootstrap and exchange test, by picture.

What is resampled are clusters: a picture with all questions about it, for these fare alike, and copies of a question
are the same question. The headline is computed anew on every resample, whatever it is (headline.py). An interval is
about other pictures of this kind; that of several seeds of training (`crossed`) about other seeds, too. Clusters with
equal sums are interchangeable, so a resample is drawn as counts of these: the same distribution, and quick.

Letters: C clusters, T kinds of clusters with equal sums, G parts of the headline, N resamples, F columns of sums, H of
one run, S seeds of training.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from mmalign.benchmarks.headline import Headline
from mmalign.errors import DataError

if TYPE_CHECKING:
    from numpy import ndarray

MOST = 10_000_000  # kinds of clusters times resamples, 2 s; where there are more kinds, fewer are drawn
LEAST = 1000  # resamples
AT_ONCE = 4_000_000  # counts held at once


class Interval(NamedTuple):
    """A headline with its percentile interval, in its unit."""

    mean: float  # the headline itself
    low: float
    high: float


class Difference(NamedTuple):
    """A difference of two headlines with its percentile interval, in their unit."""

    mean: float  # the second run minus the first
    low: float
    high: float
    p: float  # two-sided: how often the runs, exchanged at random cluster by cluster, differ at least this much


def interval(
    headline: Headline, cluster_of: Mapping[str, str], level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Interval:
    """A headline with its percentile interval; DataError where it has no questions.

    cluster_of: {question id: its picture, or what else belongs together}; a question that is not in it stands for
    itself. level: how much of the resamples lies between the ends. draws: how many resamples.
    """
    sums = _Sums([headline], cluster_of)
    return Interval(headline.value, *_ends(_resampled(sums, draws, seed), level))


def difference(
    first: Headline,
    second: Headline,
    cluster_of: Mapping[str, str],
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Difference:
    """What the second run has over the first, on the same questions; DataError where they differ."""
    if unpaired := len(first.keys ^ second.keys):
        fix = "score both on the same data"
        raise DataError(f"the runs answered different questions: {unpaired} are in one only", fix=fix)
    sums, gap = _Sums([first, second.in_order_of(first)], cluster_of), second.value - first.value
    return Difference(gap, *_ends(_resampled(sums, draws, seed), level), _exchanged(sums, abs(gap), draws, seed))


def crossed(
    seeds: Sequence[Sequence[Headline]],
    clusters_of: Sequence[Mapping[str, str]],
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Over seeds of training that were asked about the same pictures: the mean of a headline, or of what a second run
    has over the first, with an interval that is about other seeds and about other pictures.

    seeds: of each seed one headline, or that of the first and the second run. clusters_of: of each seed, as
    `interval` has it; what has one name is one cluster in all seeds. Seeds and clusters are drawn with repetition,
    each by itself, and a seed keeps its answers to every picture (the pigeonhole bootstrap: Owen, The pigeonhole
    bootstrap, Annals of Applied Statistics 1(2), 2007). Where seed and picture act on each other it is rather too
    wide than too narrow; of few seeds, any bootstrap is too narrow by about sqrt(1 - 1/S).
    """
    import numpy as np

    own = [[first, *(run.in_order_of(first) for run in others)] for first, *others in seeds]
    numbers: dict[tuple[bool, str], int] = {}
    for (first, *others), cluster_of in zip(own, clusters_of, strict=True):
        if any(run.keys != first.keys for run in others):
            raise DataError("the runs of a seed answered different questions", fix="score both on the same data")
        for one in _numbers(first, cluster_of):
            numbers.setdefault(one, len(numbers))
    sums_S = [_Sums(runs, cluster_of, numbers) for runs, cluster_of in zip(own, clusters_of, strict=True)]
    kinds_TF, counts_T = np.unique(np.concatenate([sums.table_CF for sums in sums_S], 1), axis=0, return_counts=True)
    ends_S = np.cumsum([sums.table_CF.shape[1] for sums in sums_S])
    kinds_S = np.split(kinds_TF, ends_S[:-1], axis=1)
    random, values = np.random.default_rng(seed), []
    for some in _batches(draws, len(kinds_TF)):
        counts_NT = random.multinomial(counts_T.sum(), counts_T / counts_T.sum(), size=some)
        drawn_NS = random.multinomial(len(seeds), [1 / len(seeds)] * len(seeds), size=some)
        values_NS = np.stack([sums.values(counts_NT @ kinds) for sums, kinds in zip(sums_S, kinds_S, strict=True)], 1)
        values.append((values_NS * drawn_NS).sum(1) / len(seeds))
    mean = fmean(runs[-1].value - (runs[0].value if len(runs) > 1 else 0.0) for runs in own)
    return Interval(mean, *_ends(np.concatenate(values), level))


def clusters(headline: Headline, cluster_of: Mapping[str, str]) -> int:
    """How many clusters the questions of a headline fall into."""
    return len(_numbers(headline, cluster_of))


def _numbers(headline: Headline, cluster_of: Mapping[str, str]) -> dict[tuple[bool, str], int]:
    """{cluster: its number}."""
    numbers: dict[tuple[bool, str], int] = {}
    for own in headline.parts.values():
        for qid in own:
            numbers.setdefault(cluster(qid, cluster_of), len(numbers))
    return numbers


def cluster(qid: str, cluster_of: Mapping[str, str]) -> tuple[bool, str]:
    """What a question is drawn with; the name of a question is no name of a picture."""
    return (True, cluster_of[qid]) if qid in cluster_of else (False, qid)


class _Sums:
    """The sums of each cluster: numerators and denominators of the first run's parts, then of the second's."""

    def __init__(
        self, runs: list[Headline], cluster_of: Mapping[str, str], numbers: dict[tuple[bool, str], int] | None = None
    ) -> None:
        import numpy as np  # only where intervals are asked for

        numbers = _numbers(runs[0], cluster_of) if numbers is None else numbers
        if not numbers:
            raise DataError("no items: an interval needs the values of single questions")
        self.runs, self.parts, self.least = len(runs), len(runs[0].parts), runs[0].least
        columns = []
        for parts in (run.parts for run in runs):
            at = [np.array([numbers[cluster(qid, cluster_of)] for qid in own], int) for own in parts.values()]
            pairs = [np.array([*own.values()], float).reshape(-1, 2) for own in parts.values()]
            columns += [np.bincount(a, p[:, n], len(numbers)) for n in (0, 1) for a, p in zip(at, pairs, strict=True)]
        self.table_CF: ndarray = np.stack(columns, 1).round(9)  # F = 2 G for each run; equal sums stay equal
        self.never_F: ndarray = np.abs(self.table_CF).sum(0) == 0

    def values(self, sums_NF: "ndarray") -> "ndarray":
        """The headline of each row of sums; of two runs, the second's minus the first's."""
        halves = (slice(n * 2 * self.parts, (n + 1) * 2 * self.parts) for n in range(self.runs))
        first_N, *second_N = (self._headline(sums_NF[:, half], self.never_F[half]) for half in halves)
        return second_N[0] - first_N if second_N else first_N

    def _headline(self, sums_NF: "ndarray", never_F: "ndarray") -> "ndarray":
        import numpy as np

        above_NG, below_NG = sums_NF[:, : self.parts], sums_NF[:, self.parts :]
        ratios_NG = np.divide(above_NG, below_NG, out=np.zeros_like(above_NG), where=below_NG > 0)
        # a part that has no question in a resample is left out of it; one that never has any counts 0, see Headline
        there_NG = (below_NG > 0) | never_F[self.parts :]
        if self.least:
            return np.asarray(np.where(there_NG, ratios_NG, np.inf).min(1))
        return np.asarray(ratios_NG.sum(1) / np.maximum(there_NG.sum(1), 1))


def _resampled(sums: _Sums, draws: int, seed: int) -> "ndarray":
    """The headline, or the difference of two, on every resample of the clusters."""
    import numpy as np

    kinds_TF, counts_T = np.unique(sums.table_CF, axis=0, return_counts=True)
    random, size = np.random.default_rng(seed), counts_T.sum()
    drawn = (random.multinomial(size, counts_T / size, size=some) for some in _batches(draws, len(kinds_TF)))
    values_N: ndarray = np.concatenate([sums.values(counts_NT @ kinds_TF) for counts_NT in drawn])
    return values_N


def _exchanged(sums: _Sums, gap: float, draws: int, seed: int) -> float:
    """p: under no difference either run could have given the answers about a picture. What is seen is one draw, too."""
    import numpy as np

    first_CH, second_CH = np.split(sums.table_CF, 2, axis=1)
    steps_CH = second_CH - first_CH
    kinds_TH, counts_T = np.unique(steps_CH[steps_CH.any(1)], axis=0, return_counts=True)
    if not len(kinds_TH):
        return 1.0
    random, beyond, drawn = np.random.default_rng(seed), 0, 0
    for some in _batches(draws, len(kinds_TH)):
        moved_NH = random.binomial(counts_T, 0.5, size=(some, len(kinds_TH))) @ kinds_TH
        gaps_N = sums.values(np.concatenate([first_CH.sum(0) + moved_NH, second_CH.sum(0) - moved_NH], 1))
        beyond += int((np.abs(gaps_N) >= gap - 1e-9).sum())
        drawn += some
    return (1 + beyond) / (1 + drawn)


def _batches(draws: int, kinds: int) -> Iterator[int]:
    """How many resamples are drawn at once, time after time."""
    draws = min(draws, max(LEAST, MOST // kinds))
    step = max(1, AT_ONCE // kinds)
    return (min(step, draws - done) for done in range(0, draws, step))


def _ends(values_N: "ndarray", level: float) -> tuple[float, float]:
    """The ends of the interval that holds `level` of the resamples."""
    import numpy as np

    low, high = np.quantile(values_N, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
