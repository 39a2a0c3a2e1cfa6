"""One tracker in one process: follows the log of a stage, sends its lines, and remembers up to which step it did.

python -m mmalign.pipeline.feeding TRACKER FOLDER   ends when its stdin does, with all that is there sent. So nothing
that a tracker does slows a step, and a tracker that prints, hangs or dies does so alone.
"""

import fcntl
import json
import logging
import os
import select
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from mmalign.errors import MMAlignError, RunError
from mmalign.io import document, files, seal, yaml
from mmalign.pipeline import task
from mmalign.pipeline.trackers import STEP, TRACKERS, Row, Run, Tracker

POLL = 1.0  # seconds between two looks
REST = 10  # times what a look took is waited until the next
FAILED, SENT = "failed.txt", "sent.json"  # in tracked/NAME of a stage's folder


class Sent(TypedDict):
    """sent.json: the last step, and as which run."""

    step: int
    run: str


class Named(TypedDict):
    """Of stage.yaml."""

    recipe: str
    name: str
    seed: int
    arms: list[str]
    what: dict[str, Any]


class Scored(TypedDict):
    """Of an evaluation's stage.json."""

    metrics: dict[str, dict[str, float]]
    headlines: dict[str, str]


class Lines:
    """The rows of a stage's metrics.jsonl as they come, whole lines only; all of them again where it was cut back."""

    def __init__(self, folder: Path) -> None:
        self.place, self.seen, self.file = folder / "metrics.jsonl", 0, 0

    def new(self) -> list[Row]:
        try:
            with open(self.place, "rb") as source:
                about = os.fstat(source.fileno())
                if about.st_ino != self.file or about.st_size < self.seen:
                    self.seen, self.file = 0, about.st_ino
                source.seek(self.seen)
                whole, newline, _ = source.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self.seen += len(whole) + len(newline)
        return [row for line in whole.splitlines() if (row := _row(line))]


def _row(line: bytes) -> Row | None:
    """The numbers of a line; None for one that is none of ours."""
    try:
        numbers = {name: value for name, value in json.loads(line).items() if type(value) in (int, float)}
    except (ValueError, AttributeError, RecursionError):
        return None
    return numbers if isinstance(numbers.get(STEP), int) else None


def feed(folder: Path, name: str, lasts: Iterator[bool]) -> None:
    """Send all of a stage's numbers that were not sent, once for each of `lasts`: whether the stage is over."""
    memory, lines = folder / task.TRACKED / name / SENT, Lines(folder)
    sent = _sent(memory, folder)
    tracker: Tracker | None = None
    for last in lasts:
        rows = lines.new() + (_scores(folder) if last else [])
        rows = rows if TRACKERS[name].rewrites else [row for row in rows if row[STEP] > sent["step"]]
        if rows:
            tracker = tracker or TRACKERS[name](run_of(folder, sent["run"]), sent["step"])
            tracker.send(rows)
            sent["step"] = max(sent["step"], *(int(row[STEP]) for row in rows))
            if tracker.keeps:
                files.write_json(memory, sent)
    if tracker:
        tracker.close()
        files.write_json(memory, sent)


def _sent(memory: Path, folder: Path) -> Sent:
    """What was sent; the id of a run is kept before anything is, so that a killed process is followed up."""
    if memory.exists():
        known: Sent = files.read_json(memory, kind=Sent)
        return known
    sent = Sent(step=-1, run=f"{folder.name}-{uuid.uuid4().hex[:6]}")
    files.write_json(memory, sent)
    return sent


def run_of(folder: Path, run: str) -> Run:
    """How a stage is called: by its stage, its arm and its seed."""
    about = yaml.read(folder / "stage.yaml", RunError).raw
    document.fit(about, Named, str(folder / "stage.yaml"))
    arms = list(dict.fromkeys(arm for one in about["arms"] if (arm := one.rpartition(" ")[0]) not in ("", "seed")))
    group = arms[0] if len(arms) == 1 else f"{len(arms)} arms" if arms else ""
    name = " ".join(filter(None, [about["name"], group, f"seed {about['seed']}"]))
    tags = list(dict.fromkeys([*filter(None, [about["what"].get("kind")]), about["name"], *arms]))
    return Run(run, about["recipe"], name, group, tags, about["what"], folder)


def _scores(folder: Path) -> list[Row]:
    """The headline of each benchmark of a finished evaluation, as its one row; none of any other stage."""
    place = folder / "stage.json"
    if not place.exists() or (about := seal.read(place)).get("kind") != "evaluate" or "headlines" not in about:
        return []
    document.fit(about, Scored, str(place))
    scores = {f"{bench}/{metric}": about["metrics"][bench][metric] for bench, metric in about["headlines"].items()}
    return [{STEP: 0, **scores}]


def looks() -> Iterator[bool]:
    """False now and then, and True at last, when whoever started us wants no more."""
    rest = 0.0
    while not select.select([sys.stdin], [], [], rest)[0]:
        began = time.monotonic()
        yield False
        rest = max(POLL, REST * (time.monotonic() - began))
    yield True


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """Wait until another process, whose run was killed, has sent what it had."""
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "lock", "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main(name: str, folder: Path) -> int:
    place = folder / task.TRACKED / name
    try:
        with alone(place):
            feed(folder, name, looks())
    except Exception as err:
        logging.exception("%s gets no more of %s", name, folder)
        what = err.what if isinstance(err, MMAlignError) else f"{type(err).__name__} {err}"
        files.write(place / FAILED, what.strip().splitlines()[0])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
