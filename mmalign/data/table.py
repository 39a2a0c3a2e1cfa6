"""Conversations in parquet or Arrow files, with the images' bytes in a column: also what Hugging Face saved to disk."""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from mmalign.data import kept, patterns
from mmalign.data.parts import Arrow, Parquet
from mmalign.data.recent import Recent
from mmalign.data.rows import Rows
from mmalign.errors import DataError, suggest
from mmalign.io import files

IMAGES = ("image", "images")
TEXTS, PICTURES = 1 << 26, 1 << 28  # bytes of row groups kept: of texts, of images
ENDINGS = (".parquet", ".arrow")


@dataclass(frozen=True)
class Cell:
    """An image in a table: the row, the column, and its place where the column holds lists."""

    row: int
    column: str
    place: int


class Table(Rows):
    """Columns: `conversations`, `messages`, `texts` or `caption`; `image` or `images` as {bytes, path}, bytes or path;
    `id`. A row is read with the row group it lies in, so small row groups are read faster at random.

    path: a .parquet or .arrow file, a folder of them, a pattern with * or {000..099}, or a list; local or fsspec URLs;
    or a folder that `datasets` saved. split: of such a folder that holds several. images: where paths in the column
    count from; None: the folder of the first file.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        images: str | Sequence[str] | None = None,
        quarantine: str | None = None,
        split: str | None = None,
    ) -> None:
        texts, pictures = Recent(TEXTS), Recent(PICTURES)
        places = _files(path, split)
        self.parts = [_part(place, texts, pictures) for place in places]
        self.ends = list(accumulate(part.rows for part in self.parts))
        super().__init__(self.ends[-1], images or kept.parent(places[0]), quarantine)

    def raw(self, row: int) -> Mapping[str, Any]:
        part, inside = self._at(row)
        found = part.text(inside)
        return found | {key: cells(found[key], row, key) for key in IMAGES if key in found}

    def stored(self, reference: Any) -> tuple[bytes, str]:
        if not isinstance(reference, Cell):
            return super().stored(reference)
        part, inside = self._at(reference.row)
        found = part.cell(inside, reference.column)
        data, name = super().stored(found[reference.place] if isinstance(found, list) else found)
        return data, f"row {reference.row}: {name}"

    def _at(self, row: int) -> tuple["Part", int]:
        number = bisect.bisect_right(self.ends, row)
        return self.parts[number], row - (self.ends[number] - self.parts[number].rows)


class Part(Protocol):
    """One file of a table."""

    rows: int

    def text(self, row: int) -> dict[str, Any]:
        """A row; of images only where they are, not their bytes."""
        ...

    def cell(self, row: int, column: str) -> Any:
        """What a row holds in a column."""
        ...


def cells(found: Any, row: int, column: str) -> Any:
    """A column's images, those in the file as Cells."""
    if isinstance(found, list):
        return [_cell(one, row, column, place) for place, one in enumerate(found)]
    return _cell(found, row, column, 0)


def _cell(one: Any, row: int, column: str, place: int) -> Any:
    return Cell(row, column, place) if isinstance(one, (Mapping, bytes)) else one


def _part(spec: str, texts: Recent, pictures: Recent) -> Part:
    with files.open_(spec) as source:
        magic = source.read(4)
    return Parquet(spec, texts, pictures) if magic == b"PAR1" else Arrow(spec)


def _files(path: str | Sequence[str], split: str | None) -> list[str]:
    """The files of a table, in order; of a folder that `datasets` saved, those it names."""
    place = kept.path(path) if isinstance(path, str) and not files.is_url(path) else None
    if place and (several := place / "dataset_dict.json").exists():
        known = _saved(several, "splits")
        if split not in known:
            fix = f"split: {suggest(split or '', known)}"
            raise DataError(f"no split {split!r} among {', '.join(known)}", at=str(path), fix=fix)
        return _files(str(place / str(split)), None)
    if place and (state := place / "state.json").exists():
        return [str(place / about["filename"]) for about in _saved(state, "_data_files")]
    return patterns.found(path, ENDINGS)


def _saved(place: Path, key: str) -> list[Any]:
    """A list in one of the JSON files that `datasets` writes beside its data."""
    given = files.read_json(place, DataError)
    if not isinstance(given, dict) or not isinstance(given.get(key), list):
        raise DataError(f"{place.name} has no list {key}", at=str(place), fix="save the data set again")
    return list(given[key])
