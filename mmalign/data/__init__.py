"""What a data set is: records of images and turns, found by number; images are opened only when asked for."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mmalign.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.vision import Frame

MARK = "<image>"  # stands in a turn's text for the next image of the record


@dataclass(frozen=True)
class Turn:
    """What one side says in one go; each MARK in the text stands for an image.

    weight: how much predicting an answer's tokens counts in the loss; 0: it is read and not trained.
    """

    role: Literal["system", "user", "assistant"]
    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Record:
    """One training sample: what is said about which images."""

    id: str  # of this record alone: bad samples and labels are found by it
    turns: tuple[Turn, ...]
    images: tuple[Any, ...] = ()  # references, in the order of their marks; `Data.image` understands them
    notes: tuple[str, ...] = ()  # what is worth knowing of it all the same, for `data check` and `data show`

    @property
    def keys(self) -> list[str]:
        """A key for each image: the record's id, and the image's number where there are several."""
        return [self.id] if len(self.images) == 1 else [f"{self.id}#{n}" for n in range(len(self.images))]

    @property
    def caption(self) -> str:
        """The last thing the assistant says: what contrastive training calls the caption."""
        return next((turn.text for turn in reversed(self.turns) if turn.role == "assistant"), "")


@dataclass
class Truth:
    """What each of the P patches of an image shows, for data that knows: P entries each, row by row."""

    words: list[tuple[str, ...]]  # the words true of the patch; empty where unknown
    object: list[bool | None] = field(default_factory=list)  # True: an object, False: background, None: a mixture


class Data:
    """A sequence of records. Subclasses fill in `__len__`, `__getitem__` and `image`; safe to read from threads."""

    left_out: int = 0  # records that a quarantine keeps away; `__len__` does not count them
    remarks: Sequence[str] = ()  # what is worth knowing of the files as a whole, as sentences

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, number: int) -> Record:
        """The record of that number, 0 <= number < len; DataError when it cannot be used."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Record]:
        return (self[number] for number in range(len(self)))

    def id_of(self, number: int) -> str:
        """The id of a record, or what stands for it where the record cannot be read."""
        try:
            return self[number].id
        except DataError:
            return f"row {number}"

    def image(self, reference: Any) -> "Image":
        """The picture behind a reference of a record, 8-bit RGB; DataError with the reason when it cannot be read."""
        raise DataError(f"this data has no images, but a record refers to {reference!r}")

    def image_file(self, reference: Any) -> tuple[bytes, str] | None:
        """(an image's file as it is, a name for it); None where images are no files."""
        return None

    def leave_out(self, ids: Iterable[str], at: str = "") -> None:
        """Shrink by the records of these ids, as a quarantine names them; only readers of files do. at: who says so."""
        raise DataError("this data cannot leave records out", at=at, fix="`quarantine` is for readers of files")

    def truth(self, reference: Any, frame: "Frame") -> Truth:
        """What each patch of a frame of the image shows; only data with regions knows."""
        raise DataError("this data does not know what each patch shows", fix="data with regions, such as toy-captions")
