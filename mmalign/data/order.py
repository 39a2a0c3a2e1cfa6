"""The order of an epoch by length: `grouped`, over all of it, so that nobody pads or waits; `sorted_steps`, LLaVA's.

Letters: N records, U micro-batches, M records of a micro-batch.
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
    micro_batch: int,
    batch: int,
    seed: int | Sequence[int],
    kind_N: Sequence[int] | Array | None = None,
    start: int = 0,
) -> Array:
    """order_N: a permutation of N records for one epoch, the same for the same arguments.

    Every run of `micro_batch` records is of one kind, and drawn at random from the records of its length; so a step
    has long records or short ones, not both (see `sorted_steps`). A step of `batch` records is made
    of micro-batches of like length and kind, as those of Hugging Face's LengthGroupedSampler are: whatever number of
    devices share a step, none waits for another. The order of the steps is random.

    length_N: in tokens. kind_N: records of different kinds meet in no micro-batch, save a few left over (LLaVA keeps
    those with and without an image apart). start: records of earlier epochs. The first records fill up the micro-batch
    and the step in which those ended; they and the epoch's last, less than a step each, are of any length.
    """
    lengths = np.asarray(length_N)
    kinds = np.zeros(len(lengths), np.int64) if kind_N is None else np.asarray(kind_N)
    random = np.random.default_rng(seed)
    micro_UM, rest = _micro_batches(lengths, kinds, micro_batch, random)
    missing = min(-start % micro_batch, len(lengths))  # from the last micro-batch of the epoch before
    while len(rest) < missing:
        micro_UM, rest = micro_UM[:-1], np.concatenate([rest, micro_UM[-1]])
    head, rest = rest[:missing], rest[missing:]
    rest = rest[np.lexsort([lengths[rest], kinds[rest]])]
    full = len(rest) // micro_batch * micro_batch
    micro_UM = random.permutation(np.concatenate([micro_UM, rest[:full].reshape(-1, micro_batch)]))
    filling = min(-(start + missing) % batch // micro_batch, len(micro_UM))
    steps = (len(micro_UM) - filling) * micro_batch // batch
    first, inner, last = np.split(micro_UM, [filling, filling + steps * (batch // micro_batch)])
    inner = _by_length(inner, lengths, kinds).reshape(steps, batch // micro_batch, micro_batch)
    parts = [_by_length(first, lengths, kinds), random.permutation(inner), _by_length(last, lengths, kinds)]
    return np.concatenate([head, *(part.reshape(-1) for part in parts), rest[full:]]).astype(np.int64)


def sorted_steps(
    length_N: Sequence[int] | Array,
    batch: int,
    seed: int | Sequence[int],
    kind_N: Sequence[int] | Array | None = None,
    start: int = 0,
) -> Array:
    """order_N: a permutation of N records for one epoch, as LLaVA's `group_by_modality_length` makes it.

    The `batch` records of a step are drawn at random from those of one kind and sorted, the longest first: its
    micro-batches are of like length, and what a step learns from is a fair sample. The order of the steps is random.

    length_N, kind_N, start: as for `grouped`. The first records fill up the step in which earlier epochs ended; they,
    and at the end what is left over, less than a step of each kind, are of any kind.
    """
    lengths = np.asarray(length_N)
    kinds = np.zeros(len(lengths), np.int64) if kind_N is None else np.asarray(kind_N)
    random = np.random.default_rng(seed)
    head, drawn = np.split(random.permutation(len(lengths)), [min(-start % batch, len(lengths))])
    of_kind = [drawn[kinds[drawn] == kind] for kind in np.unique(kinds)]
    steps = [own[: len(own) // batch * batch].reshape(-1, batch) for own in of_kind]
    left = random.permutation(np.concatenate([head[:0], *(own[len(own) // batch * batch :] for own in of_kind)]))
    full = len(left) // batch * batch
    every_SM = np.concatenate([np.zeros((0, batch), np.int64), *steps])
    parts = [*random.permutation(every_SM), *left[:full].reshape(-1, batch), left[full:]]
    return np.concatenate([head, *(part[np.argsort(-lengths[part], kind="stable")] for part in parts)]).astype(np.int64)


def _by_length(micro_UM: Array, lengths: Array, kinds: Array) -> Array:
    """Micro-batches of one kind together, the longest first."""
    return micro_UM[np.lexsort([-lengths[micro_UM].max(1, initial=0), kinds[micro_UM].max(1, initial=0)])]


def _micro_batches(lengths: Array, kinds: Array, micro_batch: int, random: np.random.Generator) -> tuple[Array, Array]:
    """(micro_UM of one kind and like length, the records left over)."""
    parts: list[Array] = [np.zeros((0, micro_batch), np.int64)]
    rest: list[Array] = [np.zeros(0, np.int64)]
    noisy_length = np.log(lengths + 1.0) + random.uniform(-SLACK, SLACK, len(lengths))
    for kind in np.unique(kinds):
        drawn = random.permutation(np.flatnonzero(kinds == kind))
        full = len(drawn) // micro_batch * micro_batch
        parts.append(drawn[:full][np.argsort(noisy_length[drawn[:full]])].reshape(-1, micro_batch))
        rest.append(drawn[full:])
    return random.permutation(np.concatenate(parts)), random.permutation(np.concatenate(rest))


def padding_ratio(length_N: Sequence[int] | Array, order_N: Array, micro_batch: int) -> float:
    """Padded over real tokens, when records are read in an order and each micro-batch is padded to its longest."""
    lengths = np.asarray(length_N)[order_N]
    full = len(lengths) // micro_batch * micro_batch
    micro_UM = lengths[:full].reshape(-1, micro_batch)
    last = lengths[full:]
    return float(micro_UM.max(1, initial=0).sum() * micro_batch + last.max(initial=0) * len(last)) / float(
        lengths.sum()
    )


def lengths(
    data: Data, measure: Callable[[Record], int] | None = None, tokens: int = 1, workers: int = 2
) -> tuple[Array, Array]:
    """(length_N, kind_N) of the records of a data set, each read once; 0 for one that cannot be read.

    measure: tokens of a record, exactly; None: a guess from its bytes. tokens: visual tokens an image becomes, for
    the guess. kind: 1 for records with images, 0 for text alone.
    """

    def length_and_kind(number: int) -> tuple[int, int]:
        try:
            record = data[number]
            length = measure(record) if measure else guess(record, tokens)
        except DataError:
            return 0, 0  # met again, counted and listed when it is trained on
        return length, int(bool(record.images))

    with ThreadPoolExecutor(max(1, workers)) as pool:
        pair_N2 = np.array(list(pool.map(length_and_kind, range(len(data)), chunksize=256)), np.int32).reshape(-1, 2)
    return pair_N2[:, 0], pair_N2[:, 1]


def guess(record: Record, tokens: int) -> int:
    """About how many tokens a record becomes, without a tokenizer."""
    return sum(len(turn.text.encode()) for turn in record.turns) // BYTES + tokens * len(record.images) + 1
