"""The cache: what is worked out once and may be deleted at any time, under one root, with a size and an age.

Each file in it, and each folder of a model, is one entry, used when it was last read. What has not been used for
MMALIGN_CACHE_DAYS goes, and what was used longest ago where all of it is more than MMALIGN_CACHE_BYTES. Nothing else
under the root is touched.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mmalign.io import files
from mmalign.io.limits import Limit

BYTES = Limit("MMALIGN_CACHE_BYTES", 100 << 30, "bytes")
DAYS = Limit("MMALIGN_CACHE_DAYS", 90, "days")
GRACE = 3600  # seconds in which what was used is not removed to make room: somebody may be about to open it
DAY = 86_400
# The rooms, and how our files in them are named; also what a write that was killed left
ROOMS = {
    "data": r"(rows|spans|ends|beside|samples|keys|files|stems|members)-[0-9a-f]{32}\.npy|table-[0-9a-f]{32}\.arrow|"
    r"plain-[0-9a-f]{32}",
    "banks": r"[0-9a-f]{24}\.safetensors",
    "models": r"[0-9a-f]{32}",
    "readouts": r"[0-9a-f]{24}\.safetensors",
}
FOLDERS = {"models"}  # rooms of which the entries are folders


@dataclass(frozen=True)
class Entry:
    """A file or folder of the cache. size: in bytes; used: when it was last read, in seconds."""

    place: Path
    size: int
    used: float


def entries() -> list[Entry]:
    """What the cache holds, the longest unused first."""
    return sorted(_entries(), key=lambda entry: entry.used)


def _entries() -> Iterator[Entry]:
    for room, pattern in ROOMS.items():
        known = re.compile(rf"(?:{pattern})|\.(?:{pattern})\.\d+\.part")
        with suppress(OSError), os.scandir(files.cache(room)) as found:
            for item in found:
                ours = item.is_dir if room in FOLDERS else item.is_file
                if known.fullmatch(item.name) and ours(follow_symlinks=False):
                    with suppress(OSError):  # another process may have removed it
                        used = item.stat(follow_symlinks=False).st_mtime
                        yield Entry(Path(item.path), _size(Path(item.path)), used)


def _size(place: Path) -> int:
    """The bytes of a file, or of the files in a folder."""
    return sum(one.stat().st_size for one in (place.iterdir() if place.is_dir() else [place]))


def used(place: Path) -> None:
    """Note that an entry was read."""
    with suppress(OSError):
        os.utime(place)


class _Written:
    """Bytes written by this process since it last made room; None: it never did."""

    bytes: int | None = None


def added(place: Path) -> None:
    """Note that an entry was written, and make room where it is time to look."""
    size = 0
    with suppress(OSError):
        size = _size(place)
    _Written.bytes = None if _Written.bytes is None else _Written.bytes + size
    if _Written.bytes is None or _Written.bytes > BYTES.value // 16:
        _Written.bytes = 0
        trim()


def trim() -> list[Entry]:
    """Remove what is too old, and what was used longest ago of too much; what was removed."""
    present, now = entries(), time.time()
    too_much = sum(entry.size for entry in present) - BYTES.value
    gone = []
    for entry in present:
        if now - entry.used < GRACE or (too_much <= 0 and now - entry.used < DAYS.value * DAY):
            break
        too_much -= entry.size
        gone.append(entry)
    return remove(gone)


def remove(some: list[Entry]) -> list[Entry]:
    """Remove entries; those that are gone."""
    gone = []
    for entry in some:
        with suppress(OSError):
            if entry.place.is_dir():
                _remove(entry.place)
            else:
                entry.place.unlink()
            gone.append(entry)
    return gone


def _remove(folder: Path) -> None:
    """Remove a folder: renamed first, so that nobody takes half of one for all of it."""
    aside = folder if folder.suffix else folder.with_name(f".{folder.name}.{os.getpid()}.part")
    folder.rename(aside)
    shutil.rmtree(aside)
