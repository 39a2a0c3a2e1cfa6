"""CSV and TSV files as Arrow files, every cell as the text it is: read once into the cache, some rows at a time."""

import csv
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mmalign.data import cache, sniff
from mmalign.data.rows import CAPTIONS, IMAGES, TURNS
from mmalign.errors import DataError
from mmalign.io import cache as books
from mmalign.io import parquet

ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
TOGETHER = 256  # rows written at once; a cell may hold a picture
DELIMITERS = ("\t", ",", ";", "|")
FIX = 'a CSV with a header, such as image,caption; a cell with the delimiter or quotes in it as "a ""big"" cat"'


def as_arrow(spec: str) -> Path:
    """The Arrow file of a CSV or TSV file, made once; a DataError, with the line, where it is none.

    The first line names the columns, and the delimiter is the one that makes known names of it: Excel writes ; or ,
    as the country has it. Quotes are CSV's, and one that is not closed or stands in the wrong place is refused.
    """
    plain = cache.plain(spec)
    target = cache.file("table", cache.identity(str(plain)), ".arrow")
    if target.exists():
        books.used(target)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        _convert(plain, spec, partial)
        os.replace(partial, target)
    except UnicodeDecodeError as err:
        raise DataError(f"{spec} is not UTF-8: {err.reason}", at=spec, fix="save it as UTF-8") from err
    finally:
        partial.unlink(missing_ok=True)
    books.added(target)
    return target


def _convert(plain: Path, spec: str, target: Path) -> None:
    parquet.library()
    import pyarrow
    import pyarrow.ipc

    with open(plain, "rb") as source:
        sniff.check_text(source.read(sniff.HEAD), spec)
    with open(plain, encoding="utf-8-sig", newline="") as text:
        lines = enumerate(iter(text.readline, ""), 1)
        first, header = next(((number, line) for number, line in lines if line.strip()), (1, ""))
        delimiter, names = _columns(header, f"{spec}:{first}")
        schema = pyarrow.schema([(name, pyarrow.string()) for name in names])
        rows = _rows(text, spec, first, delimiter, len(names))
        with pyarrow.ipc.new_file(str(target), schema) as writer:
            while some := list(islice(rows, TOGETHER)):
                columns = [pyarrow.array(column, pyarrow.string()) for column in zip(*some, strict=True)]
                writer.write_batch(pyarrow.record_batch(columns, schema=schema))


def _columns(line: str, at: str) -> tuple[str, list[str]]:
    """(the delimiter, the names of the columns) of the first line. at: file and line, for messages."""
    if not line:
        raise DataError("no record in the table: the file is empty", at=at, fix=FIX)
    names_by = {one: [name.strip() for name in next(csv.reader([line], delimiter=one))] for one in DELIMITERS}
    delimiter = max(DELIMITERS, key=lambda one: sum(name in TURNS + CAPTIONS + IMAGES for name in names_by[one]))
    names = names_by[delimiter]
    if not (set(TURNS) & set(names) or (set(CAPTIONS) & set(names) and set(IMAGES) & set(names))):
        what = f"the first line names neither {', '.join(TURNS)} nor image and caption: {line.strip()[:80]!r}"
        raise DataError(what, at=at, fix=FIX)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"the table has the column {twice!r} twice", at=at, fix="take one of them out")
    return delimiter, names


def _rows(text: Any, spec: str, first: int, delimiter: str, width: int) -> Iterator[list[str]]:
    """The rows behind the header, which is line `first`; blank lines do not count. A DataError names the line."""
    limit = csv.field_size_limit(sys.maxsize)  # of the whole process
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if row and len(row) != width:
                what = f"a row has {len(row)} cells, and the first line names {width} columns"
                raise DataError(what, at=f"{spec}:{first + reader.line_num}", fix=FIX)
            if row:
                yield row
    except csv.Error as err:
        raise DataError(
            f"{spec} is not a readable table: {err}", at=f"{spec}:{first + reader.line_num}", fix=FIX
        ) from err
    finally:
        csv.field_size_limit(limit)
