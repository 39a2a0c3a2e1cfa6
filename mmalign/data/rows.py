"""Records made from numbered raw rows: ids of their own, quarantined rows left out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmalign.data import Data, Record, decode
from mmalign.data import quarantine as quarantine_file
from mmalign.data.pictures import ImageReader
from mmalign.data.reasons import Unusable
from mmalign.data.turns import parse_row
from mmalign.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

TURNS = ("conversations", "messages", "texts")  # keys of a row under which its turns may stand
CAPTIONS = ("caption", "text")  # and what is said of its image
IMAGES = ("image", "images", "file_name")  # the last: of a folder of pictures with a metadata file


class Rows(Data):
    """What the readers have in common. Subclasses fill in `raw`, and `image_file` for images that are no path.

    A record's id is the row's own id and the row's number, `000000033471@17`: the ids of real data sets repeat, and
    a label store or a quarantine must know which row is meant.

    total: rows there are; a DataError where there is none. images: where image paths count from. quarantine: a file
    whose rows are left out. at: the file or folder, for messages.
    """

    def __init__(self, total: int, images: str | Sequence[str] | None, quarantine: str | None, at: str = "") -> None:
        if not total:
            raise DataError(f"no record in {at or 'the data'}", at=at, fix="is it the right file, and all of it?")
        self.total = total
        self.reader = ImageReader(images)
        self.left_out_rows = np.zeros(0, np.int64)  # numbers of the rows left out, in order
        if quarantine:
            self.leave_out(quarantine_file.read(quarantine), quarantine)

    def __len__(self) -> int:
        return self.total - len(self.left_out_rows)

    def __getitem__(self, number: int) -> Record:
        row = self.row(number)
        raw = self.raw(row)
        conversation = parse_row(raw)
        images = tuple(self.reference(row, image) for image in conversation.images)
        return Record(f"{own_id(raw)}@{row}", conversation.turns, images, conversation.notes)

    def raw(self, row: int) -> Mapping[str, Any]:
        """The row as it stands in the file; Unusable when it cannot be read."""
        raise NotImplementedError

    def reference(self, row: int, image: Any) -> Any:
        """What a record holds for an image of a row."""
        return image

    def image_file(self, reference: Any) -> tuple[bytes, str]:
        """(the bytes of an image file, a name for it); Unusable with the reason."""
        return self.reader.read(reference)

    def image(self, reference: Any) -> "Image":
        return decode.picture(*self.image_file(reference))

    def row(self, number: int) -> int:
        """The number in the file of a record's row."""
        if not 0 <= number < len(self):
            raise DataError(f"no record {number}", fix=f"0 to {len(self) - 1}")
        rows = self.left_out_rows
        return number + int(np.searchsorted(rows - np.arange(len(rows)), number, side="right")) if len(rows) else number

    def id_of(self, number: int) -> str:
        """The id a record has or would have: a quarantine names rows by it that cannot be read."""
        row = self.row(number)
        try:
            return f"{own_id(self.raw(row))}@{row}"
        except DataError:
            return f"@{row}"

    def leave_out(self, ids: Iterable[str], at: str = "") -> None:
        """Leave the rows of these ids out; a DataError where some of them are of other data."""
        id_of_row = quarantine_file.rows(ids, self.total, at)
        for row in list(id_of_row)[:: max(1, len(id_of_row) // 8)]:
            self._check_id(id_of_row[row], row, at)
        self.left_out_rows = np.union1d(self.left_out_rows, np.array(list(id_of_row), np.int64))
        self.left_out = len(self.left_out_rows)

    def _check_id(self, expected: str, row: int, at: str) -> None:
        try:
            id_ = f"{own_id(self.raw(row))}@{row}"
        except Unusable:
            return
        if id_ != expected:
            fix = "make it again: mmalign data check ... --quarantine"
            raise DataError(f"the quarantine is of other data: row {row} is {id_}, not {expected}", at=at, fix=fix)


def own_id(raw: Mapping[str, Any]) -> str:
    """The id in a row; empty where there is none."""
    id_ = raw.get("id")
    return "" if id_ is None else str(id_)
