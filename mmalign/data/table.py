"""Conversations in parquet, Arrow, CSV or TSV files, with the images in a column: also what Hugging Face saved."""

import bisect
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from mmalign.data import cache, delimited, patterns, sniff, splits, strict
from mmalign.data.columnar import Arrow, Parquet
from mmalign.data.lru import LRUCache
from mmalign.data.reasons import Unusable
from mmalign.data.rows import IMAGES, TURNS, Rows
from mmalign.errors import DataError
from mmalign.io import files

TEXTS, PICTURES = 1 << 26, 1 << 28  # bytes of row groups kept: of texts, of images
ENDINGS = (".parquet", ".arrow")
EVERY = (*ENDINGS, *delimited.ENDINGS)
SAVED = ("dataset_dict.json", "state.json")  # what `datasets` writes into a folder it saves


@dataclass(frozen=True)
class ImageCell:
    """An image in a table: its row, its column, and its index where the column holds lists."""

    row: int
    column: str
    index: int


class Table(Rows):
    """Columns: `conversations`, `messages`, `texts` or `caption`; `image` or `images` as {bytes, path}, bytes, base64
    or path, or `file_name`; `id`; `system`. A list of turns may be written as JSON. A row is read with the row group it
    lies in, so small row groups are read faster at random; CSV and TSV are kept as Arrow in the cache.

    path: a .parquet, .arrow, .csv or .tsv file, a folder of them, a pattern with * or {000..099}, or a list; local or
    fsspec URLs; or a folder that `datasets` saved. split: of a folder that holds several, `train-*.parquet` and
    `test-*.parquet`. images: where paths in the column count from; None: the folder of the first file.
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
        self.remarks = splits.missing(paths)
        super().__init__(self.ends[-1], images or cache.parent(paths[0]), quarantine, at=str(path))

    def raw(self, row: int) -> Mapping[str, Any]:
        file, offset = self._at(row)
        return as_row(file.text(offset), row)

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


def as_row(values: dict[str, Any], row: int) -> dict[str, Any]:
    """A table's row with its turns as lists, where they are written as JSON, and its images as `image_cells`."""
    written = {key: _turns(values[key], key, row) for key in TURNS if _is_json(values, key)}
    cells = {key: image_cells(_paths_in(values[key]), row, key) for key in IMAGES if key in values}
    return values | written | cells


def _paths_in(value: Any) -> Any:
    """The paths in a text that is a JSON list of them, as a CSV has several; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError):
            paths = json.loads(value)
            if isinstance(paths, list) and all(isinstance(path, str) for path in paths):
                return paths
    return value


def image_cells(value: Any, row: int, column: str) -> Any:
    """A column's value, with each image that lies in the file as an ImageCell."""
    if isinstance(value, list):
        return [_image_cell(image, row, column, index) for index, image in enumerate(value)]
    return _image_cell(value, row, column, 0)


def _image_cell(image: Any, row: int, column: str, index: int) -> Any:
    return ImageCell(row, column, index) if isinstance(image, (Mapping, bytes)) else image


def _is_json(values: Mapping[str, Any], key: str) -> bool:
    text = values.get(key)
    return isinstance(text, str) and text.lstrip().startswith("[")


def _turns(text: str, key: str, row: int) -> Any:
    """A list of turns that is written as JSON."""
    parsed = strict.parse(f'{{"{key}": {text}}}'.encode(), f"{key} of row {row}")
    if len(parsed) > 1:
        raise Unusable("json", f"{key} of row {row} is not valid JSON: something stands behind the list")
    return parsed[key]


def _open_table(spec: str, texts: LRUCache, pictures: LRUCache) -> TableFile:
    if patterns.ends(spec, delimited.ENDINGS):
        return Arrow(str(delimited.as_arrow(spec)))
    with files.open_(spec) as source:
        head = source.read(sniff.HEAD)
    sniff.check_fetched(head, spec)
    return Parquet(spec, texts, pictures) if head.startswith(b"PAR1") else Arrow(spec)


def _paths(path: str | Sequence[str], split: str | None) -> list[str]:
    """The files of a table, in order; of a folder that `datasets` saved, those it names."""
    folder = cache.path(path) if isinstance(path, str) and not files.is_url(path) else None
    if folder and (file := folder / "dataset_dict.json").exists():
        names = list(map(str, _list_in(file, "splits")))
        if split is not None or len(names) > 1:
            splits.check(split, names, str(path))
        return _paths(str(folder / (splits.canonical(split, names) or names[0])), None)
    if folder and (file := folder / "state.json").exists():
        return _saved(folder, file, split)
    paths = patterns.expand(path, EVERY, split)
    texts = [spec for spec in paths if patterns.ends(spec, delimited.ENDINGS)]
    if texts and len(texts) < len(paths):
        what = f"{path} has files of several kinds: {len(texts)} CSV, {len(paths) - len(texts)} parquet or Arrow"
        raise DataError(what, at=str(path), fix="name the files of one kind: DIR/*.parquet")
    return paths


def _saved(folder: Path, file: Path, split: str | None) -> list[str]:
    """The files of one data set that `datasets` saved."""
    state = _object_in(file)
    own = state.get("_split")
    if split is not None and split != own:
        splits.refuse(split, str(folder), f"the folder is one data set that was saved, of {own or 'no split'}")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        what = f"{folder} is a selection of rows, which older versions of `datasets` save beside all of them"
        fix = "save it again: load_from_disk(FOLDER).flatten_indices().save_to_disk(OTHER)"
        raise DataError(what, at=str(file), fix=fix)
    return [str(folder / entry["filename"]) for entry in _list_in(file, "_data_files")]


def _list_in(file: Path, key: str) -> list[Any]:
    """A list in one of the JSON files that `datasets` writes beside its data."""
    content = _object_in(file)
    if not isinstance(content.get(key), list) or not content[key]:
        raise DataError(f"{file.name} has no list {key}", at=str(file), fix="save the data set again")
    return list(content[key])


def _object_in(file: Path) -> dict[str, Any]:
    content = files.read_json(file, DataError)
    if not isinstance(content, dict):
        raise DataError(f"{file.name} holds no object", at=str(file), fix="save the data set again")
    return content
