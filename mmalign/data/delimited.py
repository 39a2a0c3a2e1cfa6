"""CSV and TSV files as Arrow files, every cell as the text it is: unpacked once into the cache, in pieces."""

import csv
import os
from pathlib import Path

from mmalign.data import cache, sniff
from mmalign.data.rows import CAPTIONS, TURNS
from mmalign.errors import DataError
from mmalign.io import cache as books
from mmalign.io import parquet

ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
BLOCK = 1 << 26  # bytes read at once; no row may be longer
HEADER = 1 << 20  # bytes in which the first line must end
DELIMITERS = ("\t", ",", ";", "|")
FIX = 'a CSV with a header: image,caption; texts with commas or line breaks in "..."'


def as_arrow(spec: str) -> Path:
    """The Arrow file of a CSV or TSV file, made once; a DataError where it is none that can be read.

    The first line names the columns, and the delimiter is the one that makes known names of it: Excel writes ; or ,
    as the country has it. Quotes are CSV's.
    """
    plain = cache.plain(spec)
    target = cache.file("table", cache.identity(str(plain)), ".arrow")
    if target.exists():
        books.used(target)
        return target
    line = _first_line(plain, spec)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        _convert(plain, spec, line, partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    books.added(target)
    return target


def _first_line(plain: Path, spec: str) -> str:
    with open(plain, "rb") as source:
        head = source.read(HEADER)
    sniff.check_text(head, spec)
    lines = head.decode("utf-8-sig", errors="replace").splitlines()
    if not lines:
        raise DataError(f"no record in {spec}: the file is empty", at=spec, fix=FIX)
    return lines[0]


def _columns(line: str, spec: str) -> tuple[str, list[str]]:
    """(the delimiter, the names of the columns) of the first line."""
    names_by = {one: [name.strip() for name in next(csv.reader([line], delimiter=one))] for one in DELIMITERS}
    delimiter = max(DELIMITERS, key=lambda one: sum(name in TURNS + CAPTIONS for name in names_by[one]))
    names = names_by[delimiter]
    if not set(TURNS + CAPTIONS) & set(names):
        what = f"the first line of {spec} names none of the columns {', '.join(TURNS + CAPTIONS)}: {line[:80]!r}"
        raise DataError(what, at=spec, fix=FIX)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{spec} has the column {twice!r} twice", at=spec, fix="take one of them out")
    return delimiter, names


def _convert(plain: Path, spec: str, line: str, target: Path) -> None:
    parquet.library()
    import pyarrow.csv
    import pyarrow.ipc

    delimiter, names = _columns(line, spec)
    read = pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK, skip_rows=1, column_names=names)
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pyarrow.string()))
    try:
        with (
            pyarrow.csv.open_csv(plain, read, parse, convert) as reader,
            pyarrow.ipc.new_file(str(target), reader.schema) as writer,
        ):
            for batch in reader:
                writer.write_batch(batch)
    except (pyarrow.ArrowException, OSError, ValueError) as err:
        reason = str(err).splitlines()[0]
        raise DataError(f"{spec} is not a readable table: {reason}", at=spec, fix=FIX) from err
