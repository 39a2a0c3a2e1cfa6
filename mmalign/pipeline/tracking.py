"""Feeds the trackers of `log_to` while a stage runs, or afterwards, each by a process of its own, see feeding.py.

A tracker never fails a run: what goes wrong is a note, and what it did not get, `mmalign report RUNS --log-to` sends.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from mmalign.errors import RunError, StageError
from mmalign.io import files
from mmalign.pipeline import feeding, task
from mmalign.plan.graph import Node

KINDS = ("train", "language", "contrast", "evaluate")  # of stages that have numbers
WAIT = 60.0  # seconds that a tracker is given to send the rest when its stage is over
HURRY = 5.0  # the same, after Ctrl-C


@dataclass
class Feeder:
    """A tracker's process."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes]
    told: bool = False

    def trouble(self) -> Iterator[str]:
        """What went wrong, once."""
        if self.process.poll() and not self.told:
            self.told = True
            yield f"{self.name} gets no more numbers of this stage: {_why(self.folder, self.name)}"

    def finish(self, until: float) -> Iterator[str]:
        """Wait for it up to a moment; what is still not done then is ended."""
        try:
            self.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.told = True
            yield f"{self.name} was too slow; `mmalign report {self.folder} --log-to {self.name}` sends the rest"
        yield from self.trouble()


@dataclass
class Tracking:
    """The trackers of a stage, from when it is entered; left, they have all its numbers, or it is told why not."""

    node: Node
    tell: Callable[[str], None]
    feeders: list[Feeder] = field(default_factory=list)

    def __enter__(self) -> Self:
        names = self.node.recipe.log_to if self.node.stage.kind in KINDS else ()
        for name in names:
            try:
                process = start(name, self.node.folder, subprocess.PIPE)
            except OSError as err:
                self.tell(f"{name} gets no numbers of this stage: {err}")
            else:
                self.feeders.append(Feeder(name, self.node.folder, process))
        return self

    def look(self) -> None:
        """Tell what went wrong since the last look."""
        for feeder in self.feeders:
            for said in feeder.trouble():
                self.tell(said)

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        for feeder in self.feeders:
            assert feeder.process.stdin
            feeder.process.stdin.close()
        until = time.monotonic() + (WAIT if err is None or isinstance(err, StageError) else HURRY)
        for feeder in self.feeders:
            for said in feeder.finish(until):
                self.tell(said)


def start(name: str, folder: Path, stdin: int) -> subprocess.Popen[bytes]:
    """A process that feeds a tracker with the numbers of a stage, until its stdin ends."""
    place = folder / task.TRACKED / name
    place.mkdir(parents=True, exist_ok=True)
    (place / feeding.FAILED).unlink(missing_ok=True)
    command = [sys.executable, "-m", "mmalign.pipeline.feeding", name, str(folder)]
    env = {**os.environ, "PYTHONSAFEPATH": "1"}  # a folder `wandb` here is not imported
    with open(place / "log.txt", "ab") as log:  # in a session of its own: Ctrl-C is not for it
        return subprocess.Popen(command, stdin=stdin, stdout=log, stderr=log, env=env, start_new_session=True)


def afterwards(places: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """Feed trackers with the numbers of finished stages; returns the folders of those that have some.

    places: folders of runs, or of stages, which stand for all that they rest on. Raises RunError where nothing is
    finished, StageError where a tracker fails.
    """
    folders = list(dict.fromkeys(folder for place in places for folder in stages(place)))
    if not folders:
        what = f"no finished stage with numbers in {', '.join(map(str, places))}"
        raise RunError(what, at=str(places[0]), fix="a folder of runs, or runs/train-..., runs/evaluate-...")
    for name in names:
        for folder in folders:
            if start(name, folder, subprocess.DEVNULL).wait():
                log = folder / task.TRACKED / name / "log.txt"
                raise StageError(f"{name}: {_why(folder, name)}", at=str(folder), fix=f"its log is {log}")
    return folders


def stages(place: Path) -> Iterator[Path]:
    """The finished stages with numbers in a folder of runs; of a stage, itself and what it rests on."""
    if (place / "stage.json").exists():
        about = task.done(place)
        for _, other in about["reads"]:
            yield from stages(place.parent / other)
        if about["kind"] in KINDS:
            yield place
        return
    for done in sorted(place.glob("*-*/stage.json")):
        if "." not in done.parent.name and done.parent.name.partition("-")[0] in KINDS:
            yield done.parent


def _why(folder: Path, name: str) -> str:
    place = folder / task.TRACKED / name
    why = place / feeding.FAILED
    if files.exists(why):
        return why.read_text(encoding="utf-8")
    return f"its process ended, see {place / 'log.txt'}"
