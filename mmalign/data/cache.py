"""The cache of data files: indexes that are computed once, and plain copies of packed or remote files.

Everything stands under the content's name in `files.cache("data")`, and may be deleted at any time.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from mmalign.errors import DataError
from mmalign.io import cache, files
from mmalign.io.limits import UNPACKED_BYTES, UNPACKED_TIMES

SAMPLE = 1 << 16  # bytes at either end of a file that stand for its content, beside its size and time
PACKED = (".gz", ".tgz")
COPY = 1 << 22  # bytes copied at once

Array = NDArray[Any]


def path(spec: str) -> Path:
    """The local path of a spec; a relative one counts from the working folder."""
    return files.local(spec) or Path(spec)


def parent(spec: str) -> str:
    """The folder a file lies in."""
    return spec.rpartition("/")[0] if files.is_url(spec) else str(path(spec).parent)


def identity(spec: str) -> str:
    """What changes when the content of a file or URL changes, 32 hex digits; a DataError where it cannot be read."""
    try:
        facts = _remote(spec) if files.is_url(spec) else _local(path(spec))
    except FileNotFoundError as err:
        raise DataError(f"no file {spec}", at=spec, fix="check the path and $MMALIGN_DATA") from err
    except Exception as err:  # file systems of fsspec raise whatever their libraries do
        raise DataError(f"cannot read {spec}: {getattr(err, 'strerror', None) or err}", at=spec) from err
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:32]


def _local(file: Path) -> list[Any]:
    with open(file, "rb") as source:
        stat = os.fstat(source.fileno())
        head = source.read(SAMPLE)
        source.seek(max(0, stat.st_size - SAMPLE))
        digest = hashlib.sha256(head + source.read(SAMPLE)).hexdigest()
    return [str(file.absolute()), stat.st_size, stat.st_mtime_ns, digest]


def _remote(spec: str) -> list[Any]:
    fs, inside = filesystem(spec)
    return [spec, fs.ukey(inside)]


def filesystem(spec: str) -> tuple[Any, str]:
    """(file system, path in it) of a URL."""
    import fsspec  # only for URLs: a local run must not need it loaded

    return cast(tuple[Any, str], fsspec.core.url_to_fs(spec))


def file(kind: str, key: str, ending: str) -> Path:
    """Where something of the cache stands; io/cache.py keeps its books."""
    return files.cache("data") / f"{kind}-{key}{ending}"


def array(kind: str, key: str, compute: Callable[[], Array]) -> Array:
    """An array of the cache, mapped and not read; computed and written where it is not there."""
    place = file(kind, key, ".npy")
    try:
        kept = np.asarray(np.load(place, mmap_mode="r", allow_pickle=False))  # a memmap would be slower to index
        cache.used(place)
        return kept
    except (OSError, ValueError):  # not there, or damaged
        computed = compute()
    buffer = io.BytesIO()
    np.save(buffer, computed, allow_pickle=False)
    with suppress(OSError):  # only a cache: where nothing can be written, it is computed again next time
        files.write(place, buffer.getvalue())
        cache.added(place)
    return computed


def plain(spec: str) -> Path:
    """The file itself, if it is local and not packed; else an unpacked copy in the cache, made once.

    A DataError where it cannot be read or unpacked.
    """
    packed = spec.lower().endswith(PACKED)
    return copied(spec, packed) if packed or files.is_url(spec) else path(spec)


def copied(spec: str, packed: bool) -> Path:
    """A copy in the cache, made once. packed: with gzip, and the copy is not. A DataError as above."""
    copy = file("plain", identity(spec), "")
    if copy.exists():
        cache.used(copy)
    else:
        _copy(spec, packed, copy)
        cache.added(copy)
    return copy


def _unpack(source: IO[bytes], target: IO[bytes], spec: str) -> None:
    """A DataError where it becomes larger than UNPACKED_BYTES and UNPACKED_TIMES what was read of it so far."""
    unpacked = 0
    with gzip.GzipFile(fileobj=source) as packed:
        while piece := packed.read(COPY):
            unpacked += len(piece)
            if unpacked > max(UNPACKED_BYTES.value, UNPACKED_TIMES * source.tell()):
                what = f"{spec} unpacks to more than {UNPACKED_BYTES.said} and {UNPACKED_TIMES} times its own size"
                raise DataError(what, at=spec, fix=UNPACKED_BYTES.fix)
            target.write(piece)


def _copy(spec: str, packed: bool, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    partial = copy.with_name(f".{copy.name}.{os.getpid()}.part")
    try:
        with files.open_(spec if files.is_url(spec) else str(path(spec))) as source, open(partial, "wb") as target:
            if packed:
                _unpack(source, target, spec)
            else:
                shutil.copyfileobj(source, target, COPY)
        os.replace(partial, copy)
    except gzip.BadGzipFile as err:
        fix = "take .gz out of its name, if it is unpacked already; else fetch it again"
        raise DataError(f"cannot unpack {spec}: {err}", at=spec, fix=fix) from err
    except (EOFError, zlib.error) as err:
        raise DataError(f"cannot unpack {spec}: {err}", at=spec, fix="the file may be cut off: fetch it again") from err
    finally:
        partial.unlink(missing_ok=True)
