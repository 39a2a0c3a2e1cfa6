"""What a running stage tells the front end: lines of JSON that the orchestrator follows."""

import json
import time
from pathlib import Path
from typing import Any

EVERY = 0.1  # seconds between two lines about progress


class Events:
    """Appends to events.jsonl, each line with its `time` (seconds since 1970); silent on every rank but the first."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.path = folder / "events.jsonl"
        self.rank = rank
        self.last = 0.0  # seconds, when progress was last written

    def say(self, text: str) -> None:
        """A line for the reader."""
        self._write({"say": text})

    def progress(self, done: int, total: int, **numbers: float) -> None:
        """How far the stage is; `numbers` are shown beside the bar."""
        if done < total and time.monotonic() - self.last < EVERY:
            return
        self.last = time.monotonic()
        self._write({"done": done, "total": total, "numbers": {k: float(f"{v:.4g}") for k, v in numbers.items()}})

    def _write(self, event: dict[str, Any]) -> None:
        if not self.rank:
            with open(self.path, "a", encoding="utf-8") as out:
                out.write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")
