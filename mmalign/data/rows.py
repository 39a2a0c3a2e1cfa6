"""Records made from numbered raw rows: ids of their own, quarantined rows left out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmalign.data import Data, Record, decode
from mmalign.data import quarantine as left
from mmalign.data.pictures import Pictures
from mmalign.data.reasons import Unusable
from mmalign.data.turns import said
from mmalign.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image


class Rows(Data):
    """What the readers have in common. Subclasses fill in `raw`, and `stored` for images that are no path.

    A record's id is the row's own id and the row's number, `000000033471@17`: the ids of real data sets repeat, and
    a label store or a quarantine must know which row is meant.

    total: rows there are. images: where image paths count from. quarantine: a file whose rows are left out.
    """

    def __init__(self, total: int, images: str | Sequence[str] | None, quarantine: str | None) -> None:
        self.total = total
        self.pictures = Pictures(images)
        self.out = np.zeros(0, np.int64)  # numbers of the rows left out, in order
        if quarantine:
            self.leave_out(left.read(quarantine), quarantine)

    def __len__(self) -> int:
        return self.total - len(self.out)

    def __getitem__(self, number: int) -> Record:
        row = self.row(number)
        raw = self.raw(row)
        found = said(raw)
        return Record(f"{own_id(raw)}@{row}", found.turns, tuple(self.reference(row, one) for one in found.images))

    def raw(self, row: int) -> Mapping[str, Any]:
        """The row as it stands in the file; Unusable when it cannot be read."""
        raise NotImplementedError

    def reference(self, row: int, image: Any) -> Any:
        """What a record holds for an image of a row."""
        return image

    def stored(self, reference: Any) -> tuple[bytes, str]:
        """(the bytes of an image file, a name for it); Unusable with the reason."""
        return self.pictures.read(reference)

    def image(self, reference: Any) -> "Image":
        return decode.picture(*self.stored(reference))

    def row(self, number: int) -> int:
        """The number in the file of a record's row."""
        if not 0 <= number < len(self):
            raise DataError(f"no record {number}", fix=f"0 to {len(self) - 1}")
        if not len(self.out):
            return number
        return number + int(np.searchsorted(self.out - np.arange(len(self.out)), number, side="right"))

    def id_of(self, number: int) -> str:
        """The id a record has or would have: a quarantine names rows by it that cannot be read."""
        row = self.row(number)
        try:
            return f"{own_id(self.raw(row))}@{row}"
        except DataError:
            return f"@{row}"

    def leave_out(self, ids: Iterable[str], at: str = "") -> None:
        """Leave the rows of these ids out."""
        rows = left.rows(ids, self.total, at)
        for row in list(rows)[:: max(1, len(rows) // 8)]:
            self._same(rows[row], row, at)
        self.out = np.union1d(self.out, np.array(list(rows), np.int64))
        self.left_out = len(self.out)

    def _same(self, wanted: str, row: int, at: str) -> None:
        try:
            found = f"{own_id(self.raw(row))}@{row}"
        except Unusable:
            return
        if found != wanted:
            fix = "make it again: mmalign data check ... --quarantine"
            raise DataError(f"the quarantine is of other data: row {row} is {found}, not {wanted}", at=at, fix=fix)


def own_id(raw: Mapping[str, Any]) -> str:
    """The id in a row; empty where there is none."""
    found = raw.get("id")
    return "" if found is None else str(found)
