"""Files read whole: never more than a limit."""

import gzip
import io
import os
import stat
import zlib
from typing import IO

from mmalign.errors import DataError, MMAlignError
from mmalign.io import files
from mmalign.io.limits import FILE_BYTES, UNPACKED_BYTES, UNPACKED_TIMES, Limit

PIECE = 1 << 20  # bytes asked for at once of what does not say how long it is


def read(spec: str, limit: Limit = FILE_BYTES, error: type[MMAlignError] = DataError) -> bytes:
    """The bytes of a local path, a `pkg:` path or a URL; an `error` where there are more than the limit.

    OSError and what file systems of fsspec raise are the caller's.
    """
    with files.open_(spec) as source:
        check_size(size(source), limit, spec, error)
        return take(source, limit, spec, error)


def take(source: IO[bytes], limit: Limit, name: str, error: type[MMAlignError] = DataError) -> bytes:
    """The rest of an open file; an `error` as soon as it is longer than the limit. name: for the message."""
    pieces, total = [], 0
    while piece := source.read(PIECE):
        total += len(piece)
        check_size(total, limit, name, error, more=True)
        pieces.append(piece)
    return b"".join(pieces)


def unpacked(data: bytes, name: str, error: type[MMAlignError] = DataError) -> bytes:
    """What is packed in the bytes of a .gz; an `error` where it is too much for its size, or cut off."""
    most = max(UNPACKED_BYTES.value, UNPACKED_TIMES * len(data))
    pieces, total = [], 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as source:
            while piece := source.read(PIECE):
                total += len(piece)
                if total > most:
                    what = f"{name} unpacks to more than {UNPACKED_BYTES.said} and {UNPACKED_TIMES} times its own size"
                    raise error(what, at=name, fix=UNPACKED_BYTES.fix)
                pieces.append(piece)
    except (EOFError, gzip.BadGzipFile, zlib.error) as err:
        raise error(f"cannot unpack {name}: {err}", at=name, fix="the file may be cut off: fetch it again") from err
    return b"".join(pieces)


def size(source: IO[bytes]) -> int:
    """The bytes of an open local file; 0 of what is none, or does not say."""
    try:
        status = os.fstat(source.fileno())
    except (OSError, AttributeError):
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def check_size(amount: int, limit: Limit, name: str, error: type[MMAlignError] = DataError, more: bool = False) -> None:
    """An `error` where an amount is more than the limit. more: it was counted so far, and there is more of it."""
    if amount > limit.value:
        has = f"more than {limit.said}" if more else limit.short(amount)
        limits = "" if more else f", and no more than {limit.said} are read"
        raise error(f"{name} has {has}{limits}", at=name, fix=limit.fix)
