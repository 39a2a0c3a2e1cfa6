"""Several data sets as one: so much of each, the same records under the same numbers every time."""

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from mmalign.data import Data, Record, Truth
from mmalign.data import quarantine as quarantine_file
from mmalign.data.conversations import Conversations
from mmalign.data.hub import Hub
from mmalign.data.table import Table
from mmalign.data.tars import Tars
from mmalign.errors import DataError, suggest

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.vision import Frame

KINDS: dict[str, type[Data]] = {"conversations": Conversations, "table": Table, "tars": Tars, "hub": Hub}


class Mixture(Data):
    """data: the members, each built already, or {kind: conversations | table | tars | hub | mixture} with the arguments
    of that kind. A recipe's `NAME` and `{card, args}` are built before they come here.

    weights: how often each member is gone through in one pass over the mixture: 1 all its records once (the default),
    0.5 every second one, 2 all of them twice. counts: how many records of each instead. Fewer than all are spread
    evenly over a member, so that a sorted file is still seen from one end to the other. quarantine: a file of records
    to leave out, as `mmalign data check --quarantine` writes it.

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
        self.members = [spec if isinstance(spec, Data) else member(spec) for spec in data]
        self.shares = weights, counts
        self._count()
        if quarantine:
            self.leave_out(quarantine_file.read(quarantine), quarantine)

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, number: int) -> Record:
        index, number_inside = self._at(number)
        record = self.members[index][number_inside]
        images = tuple((index, image) for image in record.images)
        return replace(record, id=f"{index}/{record.id}", images=images)

    def id_of(self, number: int) -> str:
        """The id a record has or would have."""
        index, number_inside = self._at(number)
        return f"{index}/{self.members[index].id_of(number_inside)}"

    def image(self, reference: tuple[int, Any]) -> "Image":
        return self.members[reference[0]].image(reference[1])

    def image_file(self, reference: tuple[int, Any]) -> tuple[bytes, str] | None:
        return self.members[reference[0]].image_file(reference[1])

    def truth(self, reference: tuple[int, Any], frame: "Frame") -> Truth:
        return self.members[reference[0]].truth(reference[1], frame)

    def _at(self, number: int) -> tuple[int, int]:
        """(member, number in it) of a record."""
        if not 0 <= number < len(self):
            raise DataError(f"no record {number}", fix=f"0 to {len(self) - 1}")
        index = bisect.bisect_right(self.ends, number)
        number_inside = number - (self.ends[index] - self.counts[index])
        size = len(self.members[index])
        passes, rest = divmod(self.counts[index], size)
        if number_inside < passes * size:
            return index, number_inside % size
        return index, (number_inside - passes * size) * size // rest

    def leave_out(self, ids: Iterable[str], at: str = "") -> None:
        """Have the members leave records out, before they are counted."""
        ids_of: dict[int, list[str]] = {}
        for id_ in ids:
            index, _, member_id = id_.partition("/")
            if not index.isdigit() or int(index) >= len(self.members):
                raise DataError(f"the quarantine is of other data: no member of the mixture has {id_!r}", at=at)
            ids_of.setdefault(int(index), []).append(member_id)
        for number, inner_ids in ids_of.items():
            self.members[number].leave_out(inner_ids, at)
        self._count()

    def _count(self) -> None:
        self.counts = _counts([len(data) for data in self.members], *self.shares)
        self.ends = list(accumulate(self.counts))
        self.left_out = sum(data.left_out for data in self.members)
        self.remarks = [f"{number}: {said}" for number, data in enumerate(self.members) for said in data.remarks]


def member(spec: Mapping[str, Any]) -> Data:
    """A data set from its kind and arguments, as a recipe writes them; a DataError with the mistake."""
    if not isinstance(spec, Mapping):
        raise DataError(f"{spec!r} is no data set", at="data", fix="{card: NAME} or {kind: NAME, path: ...}")
    args = dict(spec)
    kind = args.pop("kind", None)
    kinds = KINDS | {"mixture": Mixture}
    if kind not in kinds:
        raise DataError(f"no kind of data {kind!r}", at="data", fix=suggest(str(kind), kinds))
    try:
        return kinds[kind](**args)
    except TypeError as err:
        raise DataError(f"a member of kind {kind}: {err}", at="data", fix=f"mmalign show data {kind}") from err


def _counts(sizes: Sequence[int], weights: Sequence[float] | None, counts: Sequence[int] | None) -> list[int]:
    """How many records each member gives."""
    if weights is not None and counts is not None:
        raise DataError("a mixture takes weights or counts, not both", at="weights", fix="keep one of the two")
    numbers = weights if weights is not None else counts
    if numbers is not None and not (isinstance(numbers, Sequence) and all(type(n) in (int, float) for n in numbers)):
        raise DataError(f"weights and counts are lists of numbers, got {numbers!r}", at="weights", fix="one for each")
    if numbers is not None and len(numbers) != len(sizes):
        raise DataError(f"{len(numbers)} numbers for {len(sizes)} data sets", at="weights", fix="one for each")
    if numbers is not None and any(not (math.isfinite(n) and n >= 0) for n in numbers):
        raise DataError(f"weights and counts cannot be negative: {list(numbers)}", at="weights")
    if counts is not None:
        if any(count != int(count) for count in counts):
            fix = "weights: [...] for shares"
            raise DataError(f"counts are whole numbers of records: {list(counts)}", at="counts", fix=fix)
        records = [int(count) for count in counts]
    else:
        records = [round(size * weight) for size, weight in zip(sizes, weights or [1.0] * len(sizes), strict=True)]
    for number, (size, count) in enumerate(zip(sizes, records, strict=True)):
        if count and not size:
            raise DataError(f"data set {number} of the mixture is empty", at="data", fix="take it out")
    return records
