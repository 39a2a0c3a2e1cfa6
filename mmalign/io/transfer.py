"""One file from an address: resumed where it broke off, checked, and whole or absent.

What has come so far lies beside the target as NAME.part, with what the server called that version as NAME.part.version,
so that the same call goes on after an interruption. HTTP goes through the standard library, which asks for the rest by
`Range`; any other scheme through fsspec.
"""

import errno
import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mmalign.errors import DataError
from mmalign.io import disk

Progress = Callable[[int, int | None], None]  # bytes that are here, bytes in all where that is known

CHUNK = 1 << 20  # bytes read at once
PATIENCE = 60.0  # seconds without a byte, after which a connection counts as broken
TRIES = 5  # broken connections in a row that brought nothing
PAUSE = 1.0  # seconds before the second try, then twice as long each time
SPARE = 64 << 20  # bytes that are left free on a disk
AGAIN = (408, 425, 429, 500, 502, 503, 504)  # answers of a server that may be another a moment later
BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, EOFError)


class NoSpaceError(DataError):
    """The disk has no room for it: nothing else needs to be tried."""


def fetch(
    url: str,
    target: Path,
    size: int | None = None,
    sha256: str = "",
    progress: Progress | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Bring a file here. size: bytes, sha256: hex digits, of the whole file; where known, the file is held to them.

    Raises DataError for what cannot be had (after TRIES broken connections, or at once where the server refuses it),
    for another size or checksum than was told (what came is removed), and NoSpaceError for a disk without room.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    tries = 0
    while True:
        before = _size(part)
        try:
            with _full(target.parent):
                _go_on(url, part, size, bool(sha256), progress, dict(headers or {}))
            break
        except BROKEN as err:
            tries = tries + 1 if _size(part) <= before else 0
            if isinstance(err, urllib.error.HTTPError) and err.code not in AGAIN:
                raise DataError(f"{url}: the server says {err.code} {err.reason}", at=url, fix=_fix(err.code)) from err
            if tries >= TRIES:
                reason = getattr(err, "reason", None) or str(err) or type(err).__name__
                fix = f"the same command goes on at {_size(part):,} bytes"
                raise DataError(f"{url}: broke off {TRIES} times: {reason}", at=url, fix=fix) from err
            time.sleep(PAUSE * 2 ** max(0, tries - 1))
    _check(url, part, size, sha256)
    disk.sync(part)
    os.replace(part, target)
    _version(part).unlink(missing_ok=True)


def _fix(code: int) -> str:
    return "that server asks for a login" if code in (401, 403) else "has it moved? see `source:` of the card"


def _size(place: Path) -> int:
    return place.stat().st_size if place.exists() else 0


def _version(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _go_on(
    url: str, part: Path, size: int | None, checked: bool, progress: Progress | None, headers: dict[str, str]
) -> None:
    """Read to the end of the file, from where what is here ends; a BROKEN error where the connection does."""
    if not url.startswith(("http://", "https://")):
        _copy_other(url, part, progress)
        return
    here, known = _size(part), _version(part)
    version = known.read_text(encoding="utf-8") if known.exists() else ""
    if here and not version and not checked:  # it may be another version's, and nothing would tell
        here = 0
    if size is not None and here == size:
        return
    if here:
        headers |= {"Range": f"bytes={here}-"} | ({"If-Range": version} if version else {})
    request = urllib.request.Request(url, headers={"User-Agent": "mmalign", "Accept-Encoding": "identity", **headers})
    try:
        answer = urllib.request.urlopen(request, timeout=PATIENCE)
    except urllib.error.HTTPError as err:
        if err.code == 416 and here:  # no such range: what is here is of something else
            part.unlink()
            raise ConnectionError("the server has less than is here") from err
        raise
    with answer:
        start = here if answer.status == 206 else 0
        if start and not str(answer.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
            part.unlink()
            raise ConnectionError("the server sent another range than was asked for")
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else size
        room(part.parent, (total or 0) - start)
        known.write_text(_validator(answer.headers), encoding="utf-8")
        _copy(answer, part, start, total, progress)
    if total is not None and _size(part) < total:
        raise EOFError(f"ended at {_size(part):,} of {total:,} bytes")


def _validator(headers: Any) -> str:
    """What If-Range takes: a strong ETag, else the date of the last change."""
    etag = str(headers.get("ETag") or "")
    return etag if etag.startswith('"') else str(headers.get("Last-Modified") or "")


def _copy(source: IO[bytes] | Any, part: Path, start: int, total: int | None, progress: Progress | None) -> None:
    with open(part, "r+b" if start else "wb") as out:
        out.seek(start)
        done = start
        while data := source.read(CHUNK):
            out.write(data)
            done += len(data)
            if progress:
                progress(done, total)


def _copy_other(url: str, part: Path, progress: Progress | None) -> None:
    import fsspec  # only for what is not HTTP

    fs, inside = fsspec.core.url_to_fs(url)
    try:
        total = fs.size(inside)
        start = _size(part) if total is not None and 0 < _size(part) <= total else 0
        room(part.parent, (total or 0) - start)
        with fs.open(inside, "rb") as source:
            source.seek(start)
            _copy(source, part, start, total, progress)
    except (DataError, *BROKEN):
        raise
    except Exception as err:  # file systems of fsspec raise whatever their libraries do
        if getattr(err, "errno", None) == errno.ENOSPC:
            raise
        raise DataError(f"{url}: {err or type(err).__name__}", at=url, fix="check the address and the rights") from err


def room(folder: Path, needed: int) -> None:
    """Raise NoSpaceError where so many bytes would not leave SPARE of a disk free."""
    free = shutil.disk_usage(folder).free
    if needed > 0 and free < needed + SPARE:
        what = f"{needed:,} bytes are to come, and {max(0, free - SPARE):,} are free in {folder}"
        raise NoSpaceError(what, at=str(folder), fix="free some, or set MMALIGN_DATA, or HF_HOME for weights")


@contextmanager
def _full(folder: Path) -> Iterator[None]:
    """Around what writes: a disk that became full meanwhile is a NoSpaceError."""
    try:
        yield
    except OSError as err:
        if err.errno != errno.ENOSPC:
            raise
        fix = "free some; the same command goes on"
        raise NoSpaceError(f"no space left in {folder}", at=str(folder), fix=fix) from err


def _check(url: str, part: Path, size: int | None, sha256: str) -> None:
    """Hold what came to its size and checksum; what is wrong is removed."""
    wrong = ""
    if size is not None and _size(part) != size:
        wrong = f"{_size(part):,} bytes came, and it should be {size:,}"
    elif sha256 and (came := digest(part)) != sha256:
        wrong = f"its SHA-256 is {came}, and should be {sha256}"
    if wrong:
        part.unlink()
        _version(part).unlink(missing_ok=True)
        raise DataError(f"{url}: {wrong}", at=url, fix="try again; if it stays so, the file is not what the card means")


def come(folder: Path) -> int:
    """The bytes of all that has come into a folder, of unfinished files, too; links do not count."""
    places = (Path(above, name) for above, _, names in os.walk(folder) for name in names)
    return sum(place.lstat().st_size for place in places if not place.is_symlink())


def digest(place: Path) -> str:
    """The SHA-256 of a file, in hex digits."""
    with open(place, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
