"""Questions counted as they are answered, for whoever watches: how many, how fast."""

import time

from mmalign.training.events import Events

UNIT = "questions"


class Progress:
    """Of all benchmarks of an evaluation. total: their questions; what measures the model itself counts as one."""

    def __init__(self, events: Events, total: int) -> None:
        self.events, self.total = events, total
        self.before = 0  # questions of the benchmarks that are done
        self.questions = self.stored = self.fresh = 0  # of this one: all, answered before, answered now by us
        self.answered = self.seconds = 0.0  # answered of those that are done, by whom ever, and in which time
        self.share, self.began = 1.0, time.monotonic()
        events.progress(0, total, UNIT)

    def begin(self, questions: int, stored: int, own: int) -> None:
        """A benchmark. stored: answers that are there already. own: questions that this process answers itself."""
        self.stored, self.questions, self.fresh = stored, questions, 0
        self.share = (questions - stored) / own if own else 1.0  # what an answer stands for: others answer, too
        self.began = time.monotonic()
        self._tell()

    def add(self) -> None:
        """One more answer."""
        self.fresh += 1
        self._tell()

    def end(self, questions: int) -> None:
        """A benchmark is done."""
        self.answered += self.fresh * self.share
        self.seconds += (time.monotonic() - self.began) * bool(self.fresh)
        self.before += questions
        self.questions = self.stored = self.fresh = 0
        self.events.progress(self.before, self.total, UNIT)

    def _done(self) -> int:
        return self.before + self.stored + min(round(self.fresh * self.share), self.questions - self.stored)

    def _tell(self) -> None:
        seconds = self.seconds + time.monotonic() - self.began
        answered = self.answered + self.fresh * self.share
        rate = {"questions/s": answered / seconds} if answered and seconds else {}
        self.events.progress(self._done(), self.total, UNIT, rate)
