"""The order of an epoch: records of like length share a pass and a step, so that nobody pads or waits; else random.

Letters: N records, P passes, S passes of a step, M records of a pass.
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
    sorts windows of random records instead, which pads more where few records are long). A step of `batch` records is
    made of passes of like length and kind, as those of Hugging Face's LengthGroupedSampler are: whatever number of
    devices share a step, none waits for another. The order of the steps is random.

    kind_N: records of different kinds meet in no pass, save a few left over (LLaVA keeps those with and without an
    image apart). start: records seen in earlier epochs. The first records fill up the pass and the step in which they
    ended; they and the epoch's last, less than a step each, are of any length.
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
    fills = min(-(start + ahead) % batch // micro, len(passes_PM))
    steps = (len(passes_PM) - fills) * micro // batch
    first, inner, last = np.split(passes_PM, [fills, fills + steps * (batch // micro)])
    inner = _by_length(inner, lengths, kinds).reshape(steps, batch // micro, micro)
    parts = [_by_length(first, lengths, kinds), random.permutation(inner), _by_length(last, lengths, kinds)]
    return np.concatenate([head, *(part.reshape(-1) for part in parts), rest[whole:]]).astype(np.int64)


def _by_length(passes_PM: Array, lengths: Array, kinds: Array) -> Array:
    """Passes of one kind together, the longest first."""
    return passes_PM[np.lexsort([-lengths[passes_PM].max(1, initial=0), kinds[passes_PM].max(1, initial=0)])]


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
