"""Several data sets as one: so much of each, the same records under the same numbers every time."""

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from mmalign.data import Data, Record, Truth
from mmalign.data import quarantine as left
from mmalign.data.conversations import Conversations
from mmalign.data.hub import Hub
from mmalign.data.table import Table
from mmalign.data.tars import Tars
from mmalign.errors import DataError, suggest

if TYPE_CHECKING:
    from PIL.Image import Image

KINDS: dict[str, type[Data]] = {"conversations": Conversations, "table": Table, "tars": Tars, "hub": Hub}


class Mixture(Data):
    """data: the members, each built already, or {kind: conversations | table | tars | hub | mixture} with the arguments
    of that kind. A recipe's `NAME` and `{card, args}` are built before they come here.

    weights: how often each member is gone through in one pass over the mixture: 1 all its records once (the default),
    0.5 every second one, 2 all of them twice. counts: how many records of each instead. Fewer than all are spread
    evenly over a member, so that a sorted file is still seen from one end to the other.

    A record's id is its member's number and its own id: `0/000000033471@17`; a record that comes twice has one id.
    """

    def __init__(
        self,
        data: Sequence[Data | Mapping[str, Any]],
        weights: Sequence[float] | None = None,
        counts: Sequence[int] | None = None,
        quarantine: str | None = None,
    ) -> None:
        if not data or not isinstance(data, Sequence) or isinstance(data, str):
            what = f"{data!r} is no list of data sets" if data else "a mixture of nothing"
            raise DataError(what, at="data", fix="data: [{card: NAME}, {kind: conversations, path: ...}, ...]")
        self.members = [one if isinstance(one, Data) else member(one) for one in data]
        self.wanted = weights, counts
        self._count()
        if quarantine:
            self.leave_out(left.read(quarantine), quarantine)

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, number: int) -> Record:
        which, inside = self._at(number)
        record = self.members[which][inside]
        return Record(f"{which}/{record.id}", record.turns, tuple((which, image) for image in record.images))

    def id_of(self, number: int) -> str:
        """The id a record has or would have."""
        which, inside = self._at(number)
        return f"{which}/{self.members[which].id_of(inside)}"

    def image(self, reference: tuple[int, Any]) -> "Image":
        return self.members[reference[0]].image(reference[1])

    def stored(self, reference: tuple[int, Any]) -> tuple[bytes, str] | None:
        return self.members[reference[0]].stored(reference[1])

    def truth(self, reference: tuple[int, Any], grid: Sequence[int]) -> Truth:
        return self.members[reference[0]].truth(reference[1], grid)

    def _at(self, number: int) -> tuple[int, int]:
        """(member, number in it) of a record."""
        if not 0 <= number < len(self):
            raise DataError(f"no record {number}", fix=f"0 to {len(self) - 1}")
        which = bisect.bisect_right(self.ends, number)
        inside = number - (self.ends[which] - self.counts[which])
        size = len(self.members[which])
        passes, rest = divmod(self.counts[which], size)
        if inside < passes * size:
            return which, inside % size
        return which, (inside - passes * size) * size // rest

    def leave_out(self, ids: Iterable[str], at: str = "") -> None:
        """Have the members leave records out, before they are counted."""
        own: dict[int, list[str]] = {}
        for id_ in ids:
            which, _, inner = id_.partition("/")
            if not which.isdigit() or int(which) >= len(self.members):
                raise DataError(f"the quarantine is of other data: no member of the mixture has {id_!r}", at=at)
            own.setdefault(int(which), []).append(inner)
        for number, inner_ids in own.items():
            self.members[number].leave_out(inner_ids, at)
        self._count()

    def _count(self) -> None:
        self.counts = _counts([len(one) for one in self.members], *self.wanted)
        self.ends = list(accumulate(self.counts))
        self.left_out = sum(one.left_out for one in self.members)


def member(given: Mapping[str, Any]) -> Data:
    """A data set from its kind and arguments, as a recipe writes them."""
    if not isinstance(given, Mapping):
        raise DataError(f"{given!r} is no data set", at="data", fix="{card: NAME} or {kind: NAME, path: ...}")
    args = dict(given)
    kind = args.pop("kind", None)
    known = KINDS | {"mixture": Mixture}
    if kind not in known:
        raise DataError(f"no kind of data {kind!r}", at="data", fix=suggest(str(kind), known))
    try:
        return known[kind](**args)
    except TypeError as err:
        raise DataError(f"a member of kind {kind}: {err}", at="data", fix=f"mmalign show data {kind}") from err


def _counts(sizes: Sequence[int], weights: Sequence[float] | None, counts: Sequence[int] | None) -> list[int]:
    if weights is not None and counts is not None:
        raise DataError("a mixture takes weights or counts, not both", at="weights", fix="keep one of the two")
    given = weights if weights is not None else counts
    if given is not None and not (isinstance(given, Sequence) and all(type(one) in (int, float) for one in given)):
        raise DataError(f"weights and counts are lists of numbers, got {given!r}", at="weights", fix="one for each")
    if given is not None and len(given) != len(sizes):
        raise DataError(f"{len(given)} numbers for {len(sizes)} data sets", at="weights", fix="one for each")
    if given is not None and any(not (math.isfinite(one) and one >= 0) for one in given):
        raise DataError(f"weights and counts cannot be negative: {list(given)}", at="weights")
    if counts is not None:
        if any(one != int(one) for one in counts):
            fix = "weights: [...] for shares"
            raise DataError(f"counts are whole numbers of records: {list(counts)}", at="counts", fix=fix)
        made = [int(one) for one in counts]
    else:
        made = [round(size * weight) for size, weight in zip(sizes, weights or [1.0] * len(sizes), strict=True)]
    for number, (size, count) in enumerate(zip(sizes, made, strict=True)):
        if count and not size:
            raise DataError(f"data set {number} of the mixture is empty", at="data", fix="take it out")
    return made
