"""SHA-256 of files: taken when they are written, compared when they are read, in threads beside the work.

A stage and a checkpoint list them in stage.json and step.json. A folder that travels has them in SHA256SUMS, which
`sha256sum -c` reads too. Each file is hashed once in a process, and again only when its size or time changed.
"""

import hashlib
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from mmalign.errors import RunError
from mmalign.io import disk, files

NAME = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
LAST = "# {} files"  # the last line, so that a list that is cut off is noticed
AGAIN = f"export it again; where you changed the folder yourself, delete its {NAME}"
THREADS = min(8, os.cpu_count() or 1)
PIECE = 4 << 20  # bytes read at once
SMALL = 1 << 20  # bytes; smaller files are compared before anything reads them


class Damaged(RunError):
    """A file that is not as it was written, or not there."""


_begun: dict[tuple[str, int, int, int], Future[str]] = {}
_turns = threading.Semaphore(THREADS)


def forget() -> None:
    """Hash every file anew: also for a process that was forked, where no thread goes on."""
    global _turns
    _begun.clear()
    _turns = threading.Semaphore(THREADS)


os.register_at_fork(after_in_child=forget)


def drop(folder: Path) -> None:
    """Remember no hash of what lay in a folder that is gone."""
    within = f"{folder.absolute()}{os.sep}"
    for key in [key for key in list(_begun) if key[0].startswith(within)]:
        _begun.pop(key, None)


def begin(places: Iterable[Path]) -> None:
    """Begin to hash files, for a `verify` that comes; what cannot be read is told by that."""
    for place in places:
        _hash(place)


def _hash(place: Path) -> Future[str]:
    digest: Future[str] = Future()
    try:
        about = place.stat()
        key = (str(place.absolute()), about.st_ino, about.st_size, about.st_mtime_ns)
        if key in _begun:
            return _begun[key]
    except OSError as err:
        digest.set_exception(err)
        return digest
    _begun[key] = digest

    def work() -> None:
        try:
            digest.set_result(_sha256(place))
        except BaseException as err:
            digest.set_exception(err)

    def wait_and_work() -> None:
        with _turns:
            work()

    if about.st_size < SMALL:
        work()
    else:
        threading.Thread(target=wait_and_work, daemon=True).start()
    return digest


def _sha256(place: Path) -> str:
    """In large pieces: between two of them this thread waits for the one that loads the file."""
    digest, piece = hashlib.sha256(), memoryview(bytearray(PIECE))
    with open(place, "rb", buffering=0) as source:
        while count := source.readinto(piece):
            digest.update(piece[:count])
    return digest.hexdigest()


def of(places: Iterable[Path], folder: Path) -> dict[str, str]:
    """{path relative to the folder: hash} of files, sorted."""
    begun = [(place.relative_to(folder).as_posix(), _hash(place)) for place in sorted(places)]
    return {name: digest.result() for name, digest in begun}


def damage(known: Mapping[Path, str]) -> Iterator[tuple[Path, str]]:
    """(file, what is wrong with it) of those that are not as they were written. known: {file: hash}."""
    begun = [(place, digest, _hash(place)) for place, digest in known.items()]
    for place, digest, hashed in begun:
        try:
            if hashed.result() != digest:
                yield place, f"{place.name} is damaged: it is not as it was written (SHA-256)"
        except FileNotFoundError:
            yield place, f"{place.name} is missing"
        except PermissionError as err:
            raise disk.denied(place) from err
        except OSError as err:
            yield place, f"{place.name} cannot be read: {err.strerror}"


def verify(known: Mapping[Path, str], fix: str) -> None:
    """Raise Damaged for the first file that is not as it was written. known: {file: hash}."""
    for place, what in damage(known):
        raise Damaged(what, at=str(place), fix=fix)


@contextmanager
def verifying(known: Mapping[Path, str], fix: str) -> Iterator[None]:
    """Compare files while the body reads them: small ones, such as configurations, before; weights by its end.

    An error of the body, which may come of the damage, gives way to the Damaged that names the damaged file.
    """
    begin(known)
    verify({place: digest for place, digest in known.items() if _small(place)}, fix)
    try:
        yield
    except Exception:
        verify(known, fix)
        raise
    verify(known, fix)


def _small(place: Path) -> bool:
    try:
        return place.stat().st_size < SMALL
    except OSError:
        return True  # not there: told at once


def write(folder: Path) -> None:
    """Settle a folder and write its SHA256SUMS, of every file in it but hidden ones."""
    disk.settle(folder)
    listed = (place for place in folder.rglob("*") if place.is_file() and not place.name.startswith("."))
    known = of((place for place in listed if place != folder / NAME), folder)
    lines = [*(f"{digest}  {name}" for name, digest in known.items()), LAST.format(len(known))]
    files.write(folder / NAME, "".join(f"{line}\n" for line in lines))


def read(folder: Path) -> dict[Path, str]:
    """{file: hash} of what a folder's SHA256SUMS lists, nothing where it has none; Damaged for a list that is."""
    place = folder / NAME
    if not files.exists(place):
        return {}
    try:
        *lines, last, end = place.read_text(encoding="utf-8").split("\n")
        matches = [LINE.fullmatch(line) for line in lines]
        known = {folder / match[2]: match[1] for match in matches if match and _inside(match[2])}
        if (len(known), last, end) == (len(lines), LAST.format(len(lines)), ""):
            return known
    except PermissionError as err:
        raise disk.denied(place) from err
    except (OSError, ValueError):
        pass
    raise Damaged(f"{NAME} is damaged: it is not as it was written", at=str(place), fix=AGAIN)


def _inside(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts and "\0" not in name
