"""Whether a running stage still works: processes of it that are stopped, and silence."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mmalign.pipeline import ranks

LOOK = 1.0  # seconds between two looks
SILENT = 600.0  # seconds without a line in its log or its events until that is told; then twice as many, and so on
SIGNS = ("events.jsonl", "log.txt")


class Stalled:
    """Looks at a stage's process and at those below it. What it sees is told; nothing is ended for it."""

    def __init__(self, folder: Path, process: int) -> None:
        self.folder, self.process = folder, process
        self.looked = self.heard = time.monotonic()  # seconds: of the last look, and of the last sign of life
        self.patience, self.size = SILENT, 0
        self.stopped: set[int] = set()  # processes, at the last look
        self.told: set[int] = set()
        self.absent = ranks.Absent(folder)

    def look(self) -> Iterator[str]:
        """What there is to tell now."""
        now = time.monotonic()
        if now - self.looked >= LOOK:
            if now - self.looked > SILENT / 10:  # we were stopped ourselves, with Ctrl-Z
                self.heard = now
            self.looked = now
            yield from self._stopped()
            yield from self._silent(now)
            yield from self.absent.look()

    def _stopped(self) -> Iterator[str]:
        stopped = {process for process in below(self.process) if state(process) == "stopped"}
        lasting = stopped & self.stopped  # in two looks: what stops and goes on with us is no news
        for process in sorted(lasting - self.told):
            rank = ranks.of_process(self.folder, process)
            yield f"process {process}{rank} is stopped; kill -CONT {process} lets it go on"
        for process in sorted(self.told - stopped):
            if state(process) == "there":
                yield f"process {process} goes on"
        self.stopped, self.told = stopped, lasting | (self.told & stopped)

    def _silent(self, now: float) -> Iterator[str]:
        size = sum((self.folder / sign).stat().st_size for sign in SIGNS)
        if size != self.size:
            self.size, self.heard, self.patience = size, now, SILENT
        elif now - self.heard >= self.patience:
            self.patience *= 2
            where = ranks.standing(self.folder)
            minutes = f"{(now - self.heard) / 60:.0f} minutes{where and f' ({where})'}"
            yield f"nothing heard of it for {minutes}; it may be stuck, see {self.folder / 'log.txt'}"


def silent(folder: Path) -> float | None:
    """Seconds since a stage was last heard of, in its log or its events; None: never."""
    heard = []
    for sign in SIGNS:
        with suppress(OSError):  # it has not said anything there
            heard.append((folder / sign).stat().st_mtime)
    return max(0.0, time.time() - max(heard)) if heard else None


def below(process: int) -> Iterator[int]:
    """A process of this machine and those that it began, and so on; the process alone where the system does not say."""
    yield process
    for child in children(process):
        yield from below(child)


def children(process: int) -> list[int]:
    """The processes that a process of this machine began and which still are; none where the system does not say."""
    try:
        begun = [one.read_text() for one in Path(f"/proc/{process}/task").glob("*/children")]
    except OSError:  # it ended meanwhile
        return []
    return [int(child) for child in " ".join(begun).split()]


def state(process: int | None) -> str:
    """`there`, `stopped` or `gone`; `there` too for None, a process of another machine."""
    if process is None:
        return "there"
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return "gone"
    except OSError:
        pass  # somebody else's
    try:
        after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2]
    except OSError:
        return "there"
    return "stopped" if after_name.split()[0] == "T" else "there"
