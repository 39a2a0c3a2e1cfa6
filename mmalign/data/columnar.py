"""One parquet or Arrow file, read row by row."""

import bisect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from mmalign.data import messages
from mmalign.data.lru import LRUCache
from mmalign.data.reasons import Unusable, check_size
from mmalign.errors import DataError
from mmalign.io import files, parquet
from mmalign.io.limits import IMAGE_BYTES, ROW_BYTES, TABLE_BYTES, Limit

BYTES = ".bytes"  # how the column of an image's bytes ends


class Parquet:
    """A parquet file, as a `table.TableFile`; a DataError where it cannot be read.

    texts, pictures: the caches of row groups, without and with the images' bytes.
    """

    def __init__(self, spec: str, texts: LRUCache, pictures: LRUCache) -> None:
        self.spec, self.texts, self.pictures = spec, texts, pictures
        self.lock = threading.Lock()  # one file handle, one reader at a time
        with _readable(spec):
            self.groups = parquet.Groups(files.open_(spec))
            meta = self.groups.meta
            self.ends = list(accumulate(meta.row_group(n).num_rows for n in range(meta.num_row_groups)))
        self.columns = self.groups.paths
        self.rows: int = meta.num_rows

    def text(self, row: int) -> dict[str, Any]:
        return dict(self._row(row, self.texts, _text_columns(self.columns), ROW_BYTES))

    def cell(self, row: int, column: str) -> Any:
        columns = [name for name in self.columns if name.split(".")[0] == column]
        return self._row(row, self.pictures, columns, IMAGE_BYTES)[column]

    def _row(self, row: int, cache: LRUCache, columns: list[str], limit: Limit) -> dict[str, Any]:
        group = bisect.bisect_right(self.ends, row)
        table = cache.get((self.spec, group, *columns), lambda: self._group(group, columns))
        start = self.ends[group - 1] if group else 0
        return _values(table.slice(row - start, 1), row, limit)

    def _group(self, group: int, columns: list[str]) -> tuple[Any, int]:
        with self.lock, _readable(f"{self.spec}, row group {group}", Unusable):
            table = self.groups.read(group, columns)
        return table, table.nbytes


def _values(one: Any, row: int, limit: Limit) -> dict[str, Any]:
    """The values of a table of one row; Unusable where they are too large. row: its number, for the message."""
    check_size(f"row {row}", one.nbytes, limit)
    values: dict[str, Any] = one.to_pylist()[0]
    return values


def _text_columns(columns: list[str]) -> list[str]:
    """The columns without images' bytes, but for those where nothing else tells that there is an image."""
    described = {name.split(".")[0] for name in columns if not name.endswith(BYTES)}
    return [name for name in columns if not name.endswith(BYTES) or name.split(".")[0] not in described]


class Arrow:
    """An Arrow file or stream, as a `table.TableFile`; a DataError where it cannot be read.

    The file is mapped: a row costs nothing but itself, unless it is packed; what is, lies in memory.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        path = files.local(spec)
        ipc, arrow = _library("ipc"), _library("")
        with _readable(spec):
            source = files.open_(spec) if files.is_url(spec) else arrow.memory_map(str(path or spec))
            streamed = bytes(source.read(6)) != b"ARROW1"
            if (size := messages.unpacked(source, streamed)) > TABLE_BYTES.value:
                fix = f"{TABLE_BYTES.fix}; or save it without compression"
                raise DataError(f"{spec} unpacks to {TABLE_BYTES.short(size)} of memory", at=spec, fix=fix)
            source.seek(0)
            reader = ipc.open_stream(source) if streamed else ipc.open_file(source)
            self.batches = list(reader) if streamed else [reader.get_batch(n) for n in range(reader.num_record_batches)]
        self.ends = list(accumulate(batch.num_rows for batch in self.batches))
        self.rows: int = self.ends[-1] if self.ends else 0

    def text(self, row: int) -> dict[str, Any]:
        index = bisect.bisect_right(self.ends, row)
        offset = row - (self.ends[index] - self.batches[index].num_rows)
        return _values(self.batches[index].slice(offset, 1), row, ROW_BYTES)

    def cell(self, row: int, column: str) -> Any:
        return self.text(row)[column]


@contextmanager
def _readable(what: str, error: type[DataError] = DataError) -> Iterator[None]:
    arrow = _library("")
    try:
        yield
    except DataError as err:
        if error is Unusable:
            raise Unusable("oversized", f"{what}: {err.what}", fix=err.fix) from err
        raise
    except (OSError, ValueError, arrow.ArrowException) as err:
        reason = str(err).splitlines()[0]
        if error is Unusable:
            raise Unusable("unreadable", f"{what}: {reason}") from err
        raise DataError(f"cannot read {what}: {reason}", at=what, fix="fetch the file again") from err


def _library(module: str) -> Any:
    parquet.library()
    import pyarrow.ipc

    return getattr(pyarrow, module) if module else pyarrow
