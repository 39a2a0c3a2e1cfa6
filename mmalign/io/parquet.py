"""Row groups of parquet files, never unpacked to more than TABLE_BYTES, however small they are in the file.

What a group says of its size is what its pages hold, and a value that comes often stands in them once: such columns
are counted while they are unpacked.
"""

from collections.abc import Iterator, Sequence
from typing import IO, Any

from mmalign.errors import DataError
from mmalign.io.limits import IMAGE_BYTES, TABLE_BYTES

REPEATING = {"RLE_DICTIONARY", "PLAIN_DICTIONARY", "DELTA_BYTE_ARRAY"}  # encodings that write a value's bytes once
FIXED = 16  # bytes of a value that has none of its own: a number, the offset of a text


class Groups:
    """A parquet file, read by row groups. source: the open file.

    Raises what pyarrow raises where it is damaged, and a DataError where pyarrow is not installed.
    """

    def __init__(self, source: IO[bytes]) -> None:
        self.source = source
        self.file: Any = library().ParquetFile(source)
        self.meta: Any = self.file.metadata
        columns = [self.meta.schema.column(number) for number in range(len(self.meta.schema))]
        self.paths: list[str] = [column.path for column in columns]
        self.in_lists = {column.path for column in columns if column.max_repetition_level}

    def read(self, number: int, columns: Sequence[str] | None = None) -> Any:
        """The pyarrow.Table of a row group.

        columns: their paths, or what their paths begin with; None: all. A DataError where it would unpack to more than
        TABLE_BYTES, or a value of it to more than IMAGE_BYTES.
        """
        chunks = [chunk for chunk in self._chunks(number) if columns is None or _is_of(chunk, columns)]
        _check(sum(map(_size, chunks)), number)
        for chunk in chunks:
            if chunk.total_uncompressed_size > IMAGE_BYTES.value * max(1, chunk.num_values):
                what = f"row group {number}: a value of {chunk.path_in_schema} is larger than {IMAGE_BYTES.said}"
                raise DataError(what, fix=IMAGE_BYTES.fix)
        unsure = [chunk for chunk in chunks if _at_most(chunk) > TABLE_BYTES.value]
        if not unsure:
            return self.file.read_row_group(number, columns=columns, use_threads=False)
        _check(sum(self._counted(number, chunk) for chunk in unsure if chunk.path_in_schema in self.in_lists), number)
        return self._gathered(number, columns, max(chunk.total_uncompressed_size for chunk in unsure))

    def _chunks(self, number: int) -> Iterator[Any]:
        meta = self.meta.row_group(number)
        return (meta.column(index) for index in range(meta.num_columns))

    def _counted(self, number: int, chunk: Any) -> int:
        """Bytes of a column inside lists, where one row may have them all: its values once, how often each comes."""
        if "DELTA_BYTE_ARRAY" in chunk.encodings:  # of which nothing can be told before it is unpacked
            return _at_most(chunk)
        path = chunk.path_in_schema
        once = library().ParquetFile(self.source, metadata=self.meta, read_dictionary=[path])
        column = once.read_row_group(number, columns=[path], use_threads=False).column(0)
        return sum(map(_spread, column.chunks))

    def _gathered(self, number: int, columns: Sequence[str] | None, largest: int) -> Any:
        """The table, so few rows at a time that they cannot be too large, counted as they come."""
        import pyarrow

        rows = max(1, TABLE_BYTES.value // (8 * largest))
        batches, total = [], 0
        for batch in self.file.iter_batches(rows, row_groups=[number], columns=columns, use_threads=False):
            total += batch.nbytes
            _check(total, number)
            batches.append(batch)
        return pyarrow.Table.from_batches(batches)


def library() -> Any:
    """pyarrow.parquet; a DataError where pyarrow is not installed."""
    try:
        import pyarrow.parquet  # 0.2 s: only where such a file is read
    except ImportError as err:
        raise DataError("parquet, Arrow, CSV and TSV files need pyarrow", fix="pip install mmalign[data]") from err
    return pyarrow.parquet


def _is_of(chunk: Any, columns: Sequence[str]) -> bool:
    path = chunk.path_in_schema
    return any(path == name or path.startswith(f"{name}.") for name in columns)


def _check(size: int, number: int) -> None:
    if size > TABLE_BYTES.value:
        what = f"row group {number} unpacks to more than {TABLE_BYTES.said}"
        raise DataError(what, fix=TABLE_BYTES.fix)


def _size(chunk: Any) -> int:
    """Bytes of a column chunk, unpacked, where every value is written out."""
    return int(max(chunk.total_uncompressed_size, FIXED * chunk.num_values))


def _at_most(chunk: Any) -> int:
    """The same where every value may be the largest."""
    repeats = chunk.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY") and REPEATING & set(chunk.encodings)
    return int(chunk.num_values * chunk.total_uncompressed_size) if repeats else _size(chunk)


def _spread(array: Any) -> int:
    """Bytes that a dictionary's values would take in the places they come, inside lists and structures."""
    import pyarrow.compute
    import pyarrow.types

    while not pyarrow.types.is_dictionary(array.type):
        array = array.field(0) if pyarrow.types.is_struct(array.type) else array.flatten()
    return int(pyarrow.compute.sum(pyarrow.compute.binary_length(array.dictionary).take(array.indices)).as_py() or 0)
