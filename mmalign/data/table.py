"""Conversations in parquet or Arrow files, with the images' bytes in a column: also what Hugging Face saved to disk."""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from mmalign.data import cache, patterns
from mmalign.data.columnar import Arrow, Parquet
from mmalign.data.lru import LRUCache
from mmalign.data.rows import Rows
from mmalign.errors import DataError, suggest
from mmalign.io import files

IMAGES = ("image", "images")
TEXTS, PICTURES = 1 << 26, 1 << 28  # bytes of row groups kept: of texts, of images
ENDINGS = (".parquet", ".arrow")


@dataclass(frozen=True)
class ImageCell:
    """An image in a table: its row, its column, and its index where the column holds lists."""

    row: int
    column: str
    index: int


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
        texts, pictures = LRUCache(TEXTS), LRUCache(PICTURES)
        paths = _paths(path, split)
        self.files = [_open_table(spec, texts, pictures) for spec in paths]
        self.ends = list(accumulate(file.rows for file in self.files))
        super().__init__(self.ends[-1], images or cache.parent(paths[0]), quarantine)

    def raw(self, row: int) -> Mapping[str, Any]:
        file, offset = self._at(row)
        values = file.text(offset)
        return values | {key: image_cells(values[key], row, key) for key in IMAGES if key in values}

    def image_file(self, reference: Any) -> tuple[bytes, str]:
        if not isinstance(reference, ImageCell):
            return super().image_file(reference)
        file, offset = self._at(reference.row)
        value = file.cell(offset, reference.column)
        data, name = super().image_file(value[reference.index] if isinstance(value, list) else value)
        return data, f"row {reference.row}: {name}"

    def _at(self, row: int) -> tuple["TableFile", int]:
        """(the file of a row, the row's number in it)."""
        index = bisect.bisect_right(self.ends, row)
        return self.files[index], row - (self.ends[index] - self.files[index].rows)


class TableFile(Protocol):
    """One file of a table."""

    rows: int

    def text(self, row: int) -> dict[str, Any]:
        """A row without the images' bytes; Unusable when it cannot be read."""
        ...

    def cell(self, row: int, column: str) -> Any:
        """The value of a row in a column; Unusable when it cannot be read."""
        ...


def image_cells(value: Any, row: int, column: str) -> Any:
    """A column's value, with each image that lies in the file as an ImageCell."""
    if isinstance(value, list):
        return [_image_cell(image, row, column, index) for index, image in enumerate(value)]
    return _image_cell(value, row, column, 0)


def _image_cell(image: Any, row: int, column: str, index: int) -> Any:
    return ImageCell(row, column, index) if isinstance(image, (Mapping, bytes)) else image


def _open_table(spec: str, texts: LRUCache, pictures: LRUCache) -> TableFile:
    with files.open_(spec) as source:
        magic = source.read(4)
    return Parquet(spec, texts, pictures) if magic == b"PAR1" else Arrow(spec)


def _paths(path: str | Sequence[str], split: str | None) -> list[str]:
    """The files of a table, in order; of a folder that `datasets` saved, those it names."""
    folder = cache.path(path) if isinstance(path, str) and not files.is_url(path) else None
    if folder and (file := folder / "dataset_dict.json").exists():
        splits = _list_in(file, "splits")
        if split not in splits:
            fix = f"split: {suggest(split or '', splits)}"
            raise DataError(f"no split {split!r} among {', '.join(splits)}", at=str(path), fix=fix)
        return _paths(str(folder / str(split)), None)
    if folder and (file := folder / "state.json").exists():
        return [str(folder / entry["filename"]) for entry in _list_in(file, "_data_files")]
    return patterns.expand(path, ENDINGS)


def _list_in(file: Path, key: str) -> list[Any]:
    """A list in one of the JSON files that `datasets` writes beside its data."""
    content = files.read_json(file, DataError)
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise DataError(f"{file.name} has no list {key}", at=str(file), fix="save the data set again")
    return list(content[key])
