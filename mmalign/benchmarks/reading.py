"""Read JSON, JSON lines, TSV, CSV and parquet into rows; every error names the file and the line."""

import contextlib
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from mmalign.errors import DataError
from mmalign.io import document, files, whole
from mmalign.io.limits import FILE_BYTES
from mmalign.io.parquet import Groups, library

Row = dict[str, Any]


def text(path: str) -> str:
    """The whole of a UTF-8 file, without a byte-order mark."""
    return decoded(_bytes(path), path)


def decoded(data: bytes, path: str) -> str:
    """The text of a file's bytes, without a byte-order mark."""
    with readable(path):
        return data.decode("utf-8-sig")


@contextlib.contextmanager
def readable(path: str) -> Iterator[None]:
    """Around code that reads a file: what cannot be read is a DataError."""
    try:
        yield
    except OSError as err:
        raise DataError(f"cannot read {path}: {err.strerror or err}", at=path) from err
    except csv.Error as err:
        raise DataError(f"not a table: {err}", at=path, fix="the file may be damaged: fetch it again") from err
    except UnicodeDecodeError as err:
        raise DataError(f"not UTF-8 text: {err}", at=path, fix="the file may be damaged, or packed") from err


def json_file(path: str) -> Any:
    """The value in a JSON file."""
    return document.parse(text(path), path, DataError, "the file may be cut off: fetch it again", depth=None)


def json_lines(path: str) -> list[Row]:
    """The objects of a JSON-lines file; empty lines do not count."""
    return [line_object(line, f"{path}:{number}") for number, line in numbered(text(path))]


def numbered(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of the lines of a text that are not empty."""
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def line_object(line: str, at: str) -> Row:
    """The JSON object in a line."""
    row = document.parse(line, at, DataError, "the line may be cut off")
    if not isinstance(row, dict):
        raise DataError(f"an object was expected, got {line.strip()[:40]!r}", at=at)
    return row


# What taking apart brings where something else stands.
_NOT_THERE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
_LITERALS = (SyntaxError, RecursionError, MemoryError)  # of Python in a cell


@contextlib.contextmanager
def shape(path: str) -> Iterator[None]:
    """Around code that takes a file's content apart: what is not there as it should be is the file's fault."""
    try:
        yield
    except (*_NOT_THERE, *_LITERALS) as err:
        what = f"no {err}" if isinstance(err, KeyError) else str(err)
        fix = "is it really the file of this name?"
        raise DataError(f"the file is not built as expected: {what}", at=path, fix=fix) from err


def tsv(path: str) -> list[dict[str, str]]:
    """The rows of a tab-separated file with a header; every cell a raw string, an absent one empty."""
    data = _bytes(path)
    rows = cells(data, path, "\t")
    if not rows:
        raise DataError("the file is empty", at=path)
    header = rows[0]
    if len(rows[-1]) < len(header) and data[-1:] not in (b"\r", b"\n"):
        fix = "the file may be cut off: fetch it again"
        raise DataError(f"the last row has {len(rows[-1])} of {len(header)} cells", at=path, fix=fix)
    return [dict(zip(header, [*row, *[""] * (len(header) - len(row))], strict=False)) for row in rows[1:] if row]


def _bytes(path: str) -> bytes:
    with readable(path):
        return whole.read(path)


def csv_rows(path: str) -> list[list[str]]:
    """The rows of a comma-separated file without a header, as raw strings."""
    return [row for row in cells(_bytes(path), path, ",") if row]


def cells(data: bytes, path: str, delimiter: str) -> list[list[str]]:
    """The rows of a table; an empty line is an empty row. A line without quotes is cut apart at its delimiters, three
    times as fast as csv can; one with quotes, which may go on in the next lines, is csv's."""
    rows: list[list[str]] = []
    with _long_cells(), readable(path):
        lines = iter(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=""))
        for line in lines:
            if '"' in line:
                rows.append(next(csv.reader(chain([line], lines), delimiter=delimiter)))
            else:
                bare = line.rstrip("\r\n")
                rows.append(bare.split(delimiter) if bare else [])
    return rows


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """Cells that hold a picture are longer than the csv module's default allows; its limit is global, so put back."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


@dataclass(frozen=True)
class ParquetImage:
    """Stands for the picture in a row of a parquet file, which is read when it is asked for."""

    path: str
    row: int  # counted through the file


def parquet(paths: Sequence[str]) -> list[Row]:
    """The rows of parquet files.

    Pictures stay in the file: `image` is a ParquetImage or None, `image_name` its file name.
    """
    library()
    rows: list[Row] = []
    for path in paths:
        with parquet_source(path) as source:
            rows += _with_pictures(_rows(Groups(source), path), path)
    return rows


@contextlib.contextmanager
def parquet_source(path: str) -> Iterator[Any]:
    """A parquet file, open; what pyarrow has against its content is a DataError."""
    try:
        with files.open_(path, "rb") as source:
            yield source
    except DataError as err:
        raise DataError(err.what, at=path, fix=err.fix) from err
    except Exception as err:  # it has eleven kinds of exceptions, and Thrift its own
        reason = (str(err).strip() or type(err).__name__).splitlines()[0]
        raise DataError(f"not a readable parquet file: {reason}", at=path, fix="fetch the file again") from err


def _rows(groups: Groups, path: str) -> list[Row]:
    """All columns but the pictures' bytes, where a path tells whether there is a picture."""
    names = groups.file.schema_arrow.names
    columns = ["image.path" if name == "image" and "image.path" in groups.paths else name for name in names]
    rows: list[Row] = []
    size = 0
    for number in range(groups.meta.num_row_groups):
        table = groups.read(number, columns)
        size += table.nbytes
        whole.check_size(size, FILE_BYTES, path, more=True)
        rows += table.to_pylist()
    return rows


def _with_pictures(rows: list[Row], path: str) -> list[Row]:
    for number, row in enumerate(rows):
        if "image" in row:
            cell = row["image"]
            row["image_name"] = cell.get("path") if isinstance(cell, dict) else None
            row["image"] = None if cell is None else ParquetImage(path, number)
    return rows
