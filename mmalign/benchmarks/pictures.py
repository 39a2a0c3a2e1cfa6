"""Open the picture behind a question: a file in a folder, a base64 cell, or a row of a parquet file."""

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from mmalign.benchmarks import reading
from mmalign.benchmarks.answers import few
from mmalign.benchmarks.layouts import DataLocation
from mmalign.benchmarks.reading import ParquetImage, parquet_source
from mmalign.errors import DataError
from mmalign.io import files, pictures, whole
from mmalign.io.limits import IMAGE_BYTES
from mmalign.io.parquet import Groups
from mmalign.io.pictures import PictureError

if TYPE_CHECKING:
    from PIL.Image import Image


DIGITS = 16  # hex digits of a hash
REFERENCE = 64  # characters: a cell up to this long names, by its index, the row that has the picture


class Look(NamedTuple):
    """What a picture is known by."""

    content: str | None  # hash of its bytes; None: not known
    size: int | None = None  # bytes, and nanoseconds, of its file; None: it has none of its own
    time: int | None = None


@dataclass(frozen=True)
class Base64Image:
    """A picture written into a table's cell."""

    cell: str


def vlmevalkit_rows(path: str) -> list[dict[str, Any]]:
    """The rows of a TSV of VLMEvalKit, `image` as Base64Image; it writes a picture of several rows into one of them."""
    rows = reading.tsv(path)
    cells = {row["index"]: row["image"] for row in rows}
    return [{**row, "image": Base64Image(_resolved(row["image"], cells))} for row in rows]


def _resolved(cell: str, cells: Mapping[str, str]) -> str:
    return cells.get(cell, cell) if len(cell) <= REFERENCE else cell


class Pictures:
    """The pictures of a benchmark, by their references: file names, Base64Image or ParquetImage.

    folders: where named pictures may lie, below the benchmark's own folder; images: the one folder they lie in, if it
    is known; rgb: convert what is opened.
    """

    def __init__(
        self, location: DataLocation, folders: Sequence[str], images: str | None = None, rgb: bool = True
    ) -> None:
        self.location, self.rgb = location, rgb
        usual = [os.path.join(location.folder, folder) for folder in (*folders, "images", ".")]
        self.folders = [images] if images else usual

    def open(self, reference: Any) -> "Image":
        """RGB, or unconverted where the official script does not convert (MMBench, ScienceQA).

        DataError where it is missing or damaged.
        """
        data, name = self._data(reference)
        short = os.path.basename(name)
        try:
            image = pictures.opened(data, short)
            pictures.load(image, short)
            return pictures.rgb(image) if self.rgb else image
        except DataError as err:
            fix = err.fix or "fetch the file again"
            raise DataError(f"cannot read the picture: {err.what}", at=name, fix=fix) from err

    def look(self, reference: Any, decode: bool = False) -> Look:
        """What a picture is known by; its bytes are read, its header is, and its pixels where asked for.

        DataError where it is missing or damaged.
        """
        place = self._path(reference) if isinstance(reference, str) else None
        status = os.stat(place) if place and not files.is_url(place) else None
        data, name = self._data(reference)
        try:
            image = pictures.opened(data, os.path.basename(name))
            if decode:
                pictures.load(image, os.path.basename(name))
        except DataError as err:
            raise DataError(err.what, at=name, fix=err.fix or "fetch the file again") from err
        content = hashlib.sha256(data).hexdigest()[:DIGITS]
        return Look(content, status.st_size, status.st_mtime_ns) if status else Look(content)

    def stat(self, name: str) -> tuple[int, int] | None:
        """(size, time) of a named picture's file; None where it is not there. Not for a remote folder."""
        for folder in self.folders:
            with suppress(OSError, ValueError):
                status = os.stat(os.path.join(folder, name))
                return status.st_size, status.st_mtime_ns
        return None

    @property
    def remote(self) -> bool:
        """Whether each look takes a while."""
        return any(map(files.is_url, self.folders))

    def expect(self, names: Collection[str]) -> None:
        """DataError where named pictures are missing; not asked of a remote folder, where each look takes a while."""
        if self.remote:
            return
        missing = [name for name in names if not any(os.path.exists(os.path.join(at, name)) for at in self.folders)]
        if missing:
            what = f"{len(missing)} of {len(names)} pictures are missing: {few(missing)}"
            fix = "fetch the others, or name their folder: images=FOLDER"
            raise DataError(what, at=", ".join(self.folders), fix=fix)

    def _data(self, reference: Any) -> tuple[bytes, str]:
        if isinstance(reference, Base64Image):
            return _decoded(reference.cell), f"base64 {reference.cell[:20]}..."
        if isinstance(reference, ParquetImage):
            return _parquet_bytes(reference), f"{reference.path} row {reference.row}"
        path = self._path(str(reference))
        return whole.read(path, IMAGE_BYTES), path

    def _path(self, name: str) -> str:
        if os.path.isabs(name) or os.path.normpath(name).startswith(".."):
            raise DataError(f"the picture {name!r} is not in the benchmark's folder", fix="a name below it")
        for folder in self.folders:
            path = os.path.join(folder, name)
            if self.location.exists(path):
                return path
        raise DataError(f"no picture {name!r}", at=", ".join(self.folders), fix="name their folder: images=FOLDER")


def _decoded(cell: str) -> bytes:
    try:
        return pictures.from_base64(cell)
    except PictureError as err:
        raise DataError(f"not base64: {err.what}", at=f"{cell[:40]!r}", fix="the table may be damaged") from err


def _parquet_bytes(reference: ParquetImage) -> bytes:
    """The bytes in one row, read with the row group it lies in."""
    starts = _group_starts(reference.path)
    group = max(number for number, start in enumerate(starts) if start <= reference.row)
    name, column = f"{reference.path} row {reference.row}", _column(reference.path, group)
    one = column.slice(reference.row - starts[group], 1)
    whole.check_size(one.nbytes, IMAGE_BYTES, name)
    try:
        data = pictures.of_cell(one[0].as_py())
    except PictureError as err:
        raise DataError(err.what, at=name) from err
    if not isinstance(data, bytes):
        raise DataError("the row has no picture", at=name)
    return data


@lru_cache(maxsize=64)
def _group_starts(path: str) -> list[int]:
    """The first row of every row group."""
    with parquet_source(path) as source:
        meta = Groups(source).meta
    sizes = [meta.row_group(number).num_rows for number in range(meta.num_row_groups)]
    return [sum(sizes[:number]) for number in range(len(sizes))] or [0]


@lru_cache(maxsize=2)  # questions are asked in order: one group at a time, and the next
def _column(path: str, group: int) -> Any:
    """The pictures of a row group, a pyarrow.ChunkedArray."""
    with parquet_source(path) as source:
        return Groups(source).read(group, ["image"]).column("image")
