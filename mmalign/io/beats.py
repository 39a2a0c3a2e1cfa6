"""Heartbeats: where each rank of a running stage is, in a small file of its own that it writes over again and again.

They lie in the stage's folder, which all hosts share. Nothing waits for them to reach the disk.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from mmalign.io import document

FOLDER = "ranks"
SIZE = 4096  # bytes of a file, which is written in one call
EVERY = 10.0  # seconds between two signs of life
LONGEST = 300  # characters of a reason


class Beat(TypedDict):
    """Times are seconds since 1970 of the rank's own clock."""

    rank: document.Count
    host: str
    process: document.Count
    done: document.Count  # in units of the stage's work
    unit: str  # such as `steps`
    doing: str  # such as `trains`
    time: float  # when that was said
    alive: float  # of the last sign of life, which comes from a thread of its own
    ended: NotRequired[str]  # why; empty: its work is done


class Heart:
    """Of this process. Its thread says every EVERY seconds that it lives, whatever else it waits for."""

    def __init__(self, folder: Path, rank: int) -> None:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        self.file = os.open(place(folder, rank), os.O_WRONLY | os.O_CREAT, 0o666)
        self.lock = threading.Lock()
        self.beat: dict[str, Any] = {"rank": rank, "host": socket.gethostname(), "process": os.getpid()}
        self.tell(done=0, unit="steps", doing="begins")
        threading.Thread(target=self._live, daemon=True, name="heart").start()

    def tell(self, **what: Any) -> None:
        now = time.time()
        with self.lock:
            self.beat |= {**what, "time": now, "alive": now}
            self._write()

    def _live(self) -> None:
        while "ended" not in self.beat:
            time.sleep(EVERY)
            with self.lock:
                self.beat["alive"] = time.time()
                self._write()

    def _write(self) -> None:
        with suppress(OSError):  # a full disk is told by what needs to be there
            os.pwrite(self.file, as_bytes(self.beat), 0)


_hearts: list[Heart] = []  # this process's, where it is a rank of a stage


def begin(folder: Path, rank: int) -> None:
    """From now on this process is a rank of the stage in a folder."""
    with suppress(OSError):
        _hearts[:] = [Heart(folder, rank)]


def tell(done: int | None = None, unit: str | None = None, doing: str | None = None) -> None:
    """Where this rank is; None: as before. Some microseconds. Nothing where this process is no rank."""
    told = {"done": done, "unit": unit, "doing": doing}
    for heart in _hearts:
        heart.tell(**{name: value for name, value in told.items() if value is not None})


def end(why: str = "") -> None:
    """That this rank ends. why: empty where its work is done."""
    for heart in _hearts:
        heart.tell(ended=why[:LONGEST])
    _hearts.clear()


def place(folder: Path, rank: int) -> Path:
    """Where a rank of a stage has its file."""
    return folder / FOLDER / f"{rank}.json"


def as_bytes(beat: Mapping[str, Any]) -> bytes:
    """SIZE bytes, whatever the beat: what is written over leaves nothing of what was there."""
    return json.dumps(beat).encode()[: SIZE - 1].ljust(SIZE - 1) + b"\n"


def of(folder: Path) -> list[Beat]:
    """Those of a stage, by rank; one that is being written or is none of ours is left out."""
    beats: list[Beat] = []
    for file in (folder / FOLDER).glob("*.json"):
        try:
            beat = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if not document.problem(beat, Beat):
            beats.append(beat)
    return sorted(beats, key=lambda beat: beat["rank"])
