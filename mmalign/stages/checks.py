"""An export's checks counted as they are done, and the time of those that are left.

The process of plain transformers starts as this one did, loads the weights this one loaded and computes what this one
computed: what each took here is what it is expected to take there.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from mmalign.training.events import Events

UNIT = "checks"
PLAIN = 0.85  # of our own start: one without mmalign, as measured
DONE = "checked"  # the line that a script writes to its output behind each


@dataclass
class Checks:
    """Of one export. total: how many there are."""

    events: Events
    total: int
    start: float = field(init=False)  # seconds that a plain process takes to be ready for work, by what this one took
    _began: float = field(init=False)
    _lap: float = field(init=False)
    _ends: list[float] = field(default_factory=list, init=False)  # seconds from our beginning to each check's end
    _done: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.start, self._began = PLAIN * time.process_time(), time.monotonic()
        self._lap = self._began
        self._tell(0.0, 0.0)

    def lap(self) -> float:
        """Seconds since the last call, or since the beginning."""
        now = time.monotonic()
        took, self._lap = now - self._lap, now
        return took

    def expect(self, seconds: Sequence[float]) -> None:
        """What each check will take, one after the other from now on."""
        now = time.monotonic() - self._began
        self.total, self._done = len(seconds), 0
        self._ends = list(accumulate(seconds, initial=now))[1:]
        self._tell(now, self._ends[-1])

    def done(self) -> None:
        """One more is done."""
        self._done = min(self._done + 1, self.total)
        self._tell(self._ends[self._done - 1], self._ends[-1])

    def _tell(self, done: float, end: float) -> None:
        work = (round(1000 * done), round(1000 * end)) if end else None  # in thousandths of a second
        self.events.progress(self._done, self.total, UNIT, work=work)
