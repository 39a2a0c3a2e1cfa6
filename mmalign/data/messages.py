"""What the record batches of an Arrow file take when they are unpacked, read from its messages before any is.

A message is a flatbuffer: a table has, at its place, how far behind it lie the offsets of its fields; see Arrow's
format/Message.fbs and Schema.fbs, which the numbers below are from.
"""

import struct
from collections.abc import Iterator
from typing import Any

HEADER_TYPE, HEADER = 1, 2  # fields of a Message
DICTIONARY_BATCH, RECORD_BATCH = 2, 3  # what the header is
DATA = 1  # the field of a DictionaryBatch that is a RecordBatch
BUFFERS, COMPRESSION = 2, 3  # fields of a RecordBatch
MAGIC = 8  # bytes before the first message of a file; a stream has none


def unpacked(source: Any, streamed: bool) -> int:
    """Bytes that the packed batches of an open pyarrow file take in memory; those that are not packed take none."""
    import pyarrow.ipc

    source.seek(0 if streamed else MAGIC)
    total = 0
    for message in pyarrow.ipc.MessageReader.open_stream(source):
        total += sum(_sizes(bytes(message.metadata), message.body))
    return total


def _sizes(meta: bytes, body: Any) -> Iterator[int]:
    """The size of each buffer of a packed batch, which stands before it: -1 for one that was left as it is."""
    try:
        batch = _batch(meta)
        if batch is None or not _field(meta, batch, COMPRESSION):
            return
        place = _followed(meta, _field(meta, batch, BUFFERS))
        for number in range(_number("<I", meta, place)):
            offset, length = struct.unpack_from("<qq", meta, place + 4 + 16 * number)
            if length >= 8:
                yield max(0, int(struct.unpack_from("<q", body, offset)[0]))
    except (struct.error, IndexError) as err:
        raise ValueError(f"a message is damaged: {err}") from err


def _batch(meta: bytes) -> int | None:
    """Where the RecordBatch of a message begins; None of one that has none."""
    message = _number("<I", meta, 0)
    kind = _field(meta, message, HEADER_TYPE)
    header = _field(meta, message, HEADER)
    if not kind or not header or meta[kind] not in (DICTIONARY_BATCH, RECORD_BATCH):
        return None
    table = _followed(meta, header)
    return table if meta[kind] == RECORD_BATCH else _followed(meta, _field(meta, table, DATA))


def _field(meta: bytes, table: int, number: int) -> int:
    """Where a field of a table stands; 0 where it was left out."""
    offsets = table - _number("<i", meta, table)
    at = 4 + 2 * number
    offset = _number("<H", meta, offsets + at) if at < _number("<H", meta, offsets) else 0
    return table + offset if offset else 0


def _followed(meta: bytes, place: int) -> int:
    return place + _number("<I", meta, place)


def _number(kind: str, meta: bytes, place: int) -> int:
    if place < 0:
        raise struct.error("an offset before the message")
    return int(struct.unpack_from(kind, meta, place)[0])
