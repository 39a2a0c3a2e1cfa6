"""What a running stage tells the front end: lines of JSON that the orchestrator follows."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from threading import RLock, Timer
from typing import Any

from mmalign.io import beats

EVERY = 0.1  # seconds between two lines about progress


class Events:
    """Appends to events.jsonl, each line with its `time` (seconds since 1970); silent on every rank but the first."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.path = folder / "events.jsonl"
        self.rank = rank
        self.last = 0.0  # seconds, when progress was last written
        self.newest: dict[str, Any] = {}  # progress that was not written yet
        self.numbers: dict[str, float] = {}  # likewise
        self.later: Timer | None = None  # who will write it
        self.lock = RLock()

    def say(self, text: str) -> None:
        """A line for the reader."""
        self._write({"say": text})

    def progress(
        self,
        done: int,
        total: int,
        unit: str,
        numbers: Mapping[str, float] | None = None,
        work: tuple[int, int] | None = None,
    ) -> None:
        """How far the stage is, in units of its work, such as `steps`. numbers: new ones, to be shown beside the bar
        until there are others. work: done and total as they take time, where a unit is not like another.

        Of what comes all at once, as the answers of a pass do, the last is written, a moment later.
        """
        beats.tell(done, unit)
        if self.rank:
            return
        with self.lock:
            self.newest = {"done": done, "total": total, "unit": unit} | ({"work": work} if work else {})
            self.numbers |= {name: float(f"{value:.4g}") for name, value in (numbers or {}).items()}
            if done >= total or time.monotonic() - self.last >= EVERY:
                self._tell()
            elif not self.later:
                self.later = Timer(EVERY, self._tell)
                self.later.daemon = True
                self.later.start()

    def _tell(self) -> None:
        with self.lock:
            if self.newest:
                self._write({**self.newest, "numbers": self.numbers})
            self.newest, self.numbers, self.later, self.last = {}, {}, None, time.monotonic()

    def _write(self, event: dict[str, Any]) -> None:
        if not self.rank:
            with self.lock, open(self.path, "a", encoding="utf-8") as out:
                out.write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")
