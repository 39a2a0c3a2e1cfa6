"""Questions counted as they are answered, for whoever watches: how many, how fast."""

import time

from mmalign.training.events import Events

UNIT = "questions"


class Progress:
    """Of all benchmarks of an evaluation. total: their questions; what measures the model itself counts as one. work:
    the same, but what measures the model itself as the questions that take as long; None: as many."""

    def __init__(self, events: Events, total: int, work: int | None = None) -> None:
        self.events, self.total = events, total
        self.work, self.beyond = total if work is None else work, 0  # beyond: what is done of it and no question
        self.before = 0  # questions of the benchmarks that are done
        self.questions = self.stored = self.fresh = 0  # of this one: all, answered before, answered now by us
        self.answered = self.seconds = 0.0  # answered of those that are done, by whom ever, and in which time
        self.share, self.began = 1.0, time.monotonic()
        events.progress(0, total, UNIT, work=(0, self.work))

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

    def end(self, questions: int, takes: int | None = None) -> None:
        """A benchmark is done. takes: what measures the model itself, in questions."""
        self.answered += self.fresh * self.share
        self.seconds += (time.monotonic() - self.began) * bool(self.fresh)
        self.before += questions
        self.beyond += 0 if takes is None else takes - questions
        self.questions = self.stored = self.fresh = 0
        self.events.progress(self.before, self.total, UNIT, work=(self.before + self.beyond, self.work))

    def _done(self) -> int:
        return self.before + self.stored + min(round(self.fresh * self.share), self.questions - self.stored)

    def _tell(self) -> None:
        seconds = self.seconds + time.monotonic() - self.began
        answered = self.answered + self.fresh * self.share
        rate = {"questions/s": answered / seconds} if answered and seconds else {}
        done = self._done()
        self.events.progress(done, self.total, UNIT, rate, (done + self.beyond, self.work))
