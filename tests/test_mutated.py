"""Files that somebody else wrote, broken at random, through the library: they are read, or refused in our words.

A failure names the room and the number of the mutation; `ROOM=store python -m pytest tests/test_mutated.py` looks at
one room, and `again(room, folder, number)` reads one mutation again.
"""

import os
import random
import resource
import signal
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mmalign.errors import MMAlignError
from tests.mutate import mutated
from tests.mutated_rooms import ROOMS, Room

SHORT, LONG = 900, 20_000  # mutations in an ordinary run, and in the slow one
PATIENCE = 20  # seconds for one file
MEMORY = 8 << 30  # bytes beyond what the process has


class Stuck(BaseException):
    """A file was not read within PATIENCE."""


@dataclass
class Foreign:
    """An exception that is none of ours, and the mutation that brings it."""

    room: str
    number: int
    file: str
    trace: str

    @property
    def kind(self) -> str:
        """What raised it and where: the last lines of the trace without the values in them."""
        places = [line.strip() for line in self.trace.splitlines() if line.startswith("  File ")]
        own = [place for place in places if "/mmalign/" in place or "/cli/" in place]
        return f"{self.trace.strip().splitlines()[-1][:150]}\n    {(own or places or [''])[-1]}"


def broken_file(room: Room, number: int, folder: Path) -> tuple[Path, bytes]:
    """(a file of the room, what the mutation of this number makes of it)."""
    how = random.Random(f"{room.name} {number}")
    name, form = how.choice(list(room.files(folder).items()))
    return folder / name, mutated((folder / name).read_bytes(), form, how)


def again(room: Room, folder: Path, number: int) -> Foreign | None:
    """Read a room's folder with one file broken; the file is put back."""
    place, data = broken_file(room, number, folder)
    whole = place.read_bytes()
    place.write_bytes(data)
    try:
        with limited():
            room.read(folder, place)
    except MMAlignError as err:
        if not (err.what.strip() and (err.at or err.fix)) or "Traceback" in str(err):
            return Foreign(room.name, number, place.name, f"a mistake without words: {err!r}")
    except KeyboardInterrupt:
        raise
    except BaseException:  # a panic of Rust is no Exception
        return Foreign(room.name, number, place.name, traceback.format_exc())
    finally:
        place.write_bytes(whole)
    return None


@contextmanager
def limited() -> Iterator[None]:
    """Neither longer nor larger than a broken file may be."""

    def stop(*_: Any) -> None:
        raise Stuck(f"not read in {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module", autouse=True)
def _bounded() -> Iterator[None]:
    """A size in a file that would take all memory fails as it does on a machine that has no more."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def survey(room: Room, folder: Path, numbers: range) -> list[Foreign]:
    room.make(folder)
    room.read(folder, None)  # whole, it is read
    return [foreign for number in numbers if (foreign := again(room, folder, number))]


def told(foreign: list[Foreign]) -> str:
    """Each kind once, with its count, its first number and its trace."""
    counts = Counter(one.kind for one in foreign)
    firsts = {one.kind: one for one in reversed(foreign)}
    lines = [f"{n} x {kind}   (number {firsts[kind].number}, {firsts[kind].file})" for kind, n in counts.items()]
    return "\n".join([*lines, "", next(iter(firsts.values())).trace if firsts else ""])


CHOSEN = [room for room in ROOMS if os.environ.get("ROOM", room.name) == room.name]


@pytest.mark.parametrize("room", CHOSEN, ids=lambda room: room.name)
def test_a_broken_file_is_read_or_refused(room: Room, here: Path) -> None:
    foreign = survey(room, here, range(round(SHORT * room.share)))
    assert not foreign, told(foreign)


@pytest.mark.slow
@pytest.mark.parametrize("room", CHOSEN, ids=lambda room: room.name)
def test_twenty_thousand_broken_files(room: Room, here: Path) -> None:
    foreign = survey(room, here, range(round(LONG * room.share)))
    assert not foreign, told(foreign)


def test_the_shares_are_a_whole() -> None:
    assert sum(room.share for room in ROOMS) == pytest.approx(1)
