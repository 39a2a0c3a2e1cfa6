"""The order of an epoch: records of like length share a pass, so that little is padded; else it is random.

Letters: N records, P passes.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.data import Data, Record
from mmalign.errors import DataError

SLACK = 0.005  # records whose lengths differ by up to twice this share meet as if they were of one length
BYTES = 4  # of text for one token, roughly; for CJK it is as rough

Array = NDArray[Any]


def grouped(
    length_N: Sequence[int] | Array,
    micro: int,
    batch: int,
    seed: int | Sequence[int],
    kind_N: Sequence[int] | Array | None = None,
    start: int = 0,
) -> Array:
    """A permutation of N records for one epoch, the same for the same arguments.

    Every run of `micro` records is a pass: of one kind, and drawn at random from the records of its length (LLaVA
    sorts windows of random records instead, which pads more where few records are long). Which passes make a step of
    `batch` records is random too, so that a step still is a sample of the whole data; within a step they are sorted
    by length, so that devices that work side by side get passes of about the same size.

    kind_N: records of different kinds meet in no pass, save a few left over (LLaVA keeps those with and without an
    image apart). start: records seen in earlier epochs. The first records fill up the pass in which they ended.
    """
    lengths = np.asarray(length_N)
    kinds = np.zeros(len(lengths), np.int64) if kind_N is None else np.asarray(kind_N)
    random = np.random.default_rng(seed)
    passes_PM, rest = _passes(lengths, kinds, micro, random)
    ahead = min(-start % micro, len(lengths))  # places left in the last pass of the epoch before
    while len(rest) < ahead:
        passes_PM, rest = passes_PM[:-1], np.concatenate([rest, passes_PM[-1]])
    head, rest = rest[:ahead], rest[ahead:]
    rest = rest[np.lexsort([lengths[rest], kinds[rest]])]
    whole = len(rest) // micro * micro
    passes_PM = random.permutation(np.concatenate([passes_PM, rest[:whole].reshape(-1, micro)]))
    longest_P = lengths[passes_PM].max(1, initial=0)
    step_P = (start + ahead + np.arange(len(passes_PM)) * micro) // batch
    ordered = passes_PM[np.lexsort([-longest_P, step_P])]
    return np.concatenate([head, ordered.reshape(-1), rest[whole:]]).astype(np.int64)


def _passes(lengths: Array, kinds: Array, micro: int, random: np.random.Generator) -> tuple[Array, Array]:
    """(passes of one kind and like length, the records left over)."""
    passes: list[Array] = [np.zeros((0, micro), np.int64)]
    rest: list[Array] = [np.zeros(0, np.int64)]
    blurred = np.log(lengths + 1.0) + random.uniform(-SLACK, SLACK, len(lengths))
    for kind in np.unique(kinds):
        drawn = random.permutation(np.flatnonzero(kinds == kind))
        whole = len(drawn) // micro * micro
        passes.append(drawn[:whole][np.argsort(blurred[drawn[:whole]])].reshape(-1, micro))
        rest.append(drawn[whole:])
    return random.permutation(np.concatenate(passes)), random.permutation(np.concatenate(rest))


def padded(length_N: Sequence[int] | Array, order_N: Array, micro: int) -> float:
    """Padded over real tokens, when records are read in an order and every pass is padded to its longest."""
    lengths = np.asarray(length_N)[order_N]
    whole = len(lengths) // micro * micro
    passes_PM = lengths[:whole].reshape(-1, micro)
    last = lengths[whole:]
    return float(passes_PM.max(1, initial=0).sum() * micro + last.max(initial=0) * len(last)) / float(lengths.sum())


def lengths(
    data: Data, measure: Callable[[Record], int] | None = None, tokens: int = 1, workers: int = 2
) -> tuple[Array, Array]:
    """(length_N, kind_N) of the records of a data set, each read once; 0 for one that cannot be read.

    measure: tokens of a record, exactly; None: a guess from its bytes. tokens: visual tokens an image becomes, for
    the guess. kind: 1 for records with images, 0 for text alone.
    """

    def one(number: int) -> tuple[int, int]:
        try:
            record = data[number]
            length = measure(record) if measure else guess(record, tokens)
        except DataError:
            return 0, 0  # met again, counted and listed when it is trained on
        return length, int(bool(record.images))

    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = np.array(list(pool.map(one, range(len(data)), chunksize=256)), np.int32).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def guess(record: Record, tokens: int) -> int:
    """About how many tokens a record becomes, without a tokenizer."""
    return sum(len(turn.text.encode()) for turn in record.turns) // BYTES + tokens * len(record.images) + 1
