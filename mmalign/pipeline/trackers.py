"""The trackers: each takes the numbers of one stage, step by step, and writes them where its own viewer looks.

A row is {name: number}, with `step`, the x of all the others. Packages are imported where they are used.
"""

import csv
import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.io import files
from mmalign.pipeline import task

Row = dict[str, float]
STEP, TIME = "step", "time"  # of a row: optimizer steps, seconds since 1970


@dataclass(frozen=True)
class Run:
    """What a tracker calls a stage.

    id: unlike that of any other folder. project: the recipe. name: stage, arm and seed. group: the arm; empty: none.
    settings: all that can change the stage's result.
    """

    id: str
    project: str
    name: str
    group: str
    tags: list[str]
    settings: dict[str, Any]
    folder: Path


class Tracker(ABC):
    """Opened for one stage. sent: the last step that an earlier process sent and noted; -1: none."""

    rewrites = False  # True: it writes all rows anew, so it is given those that were sent before, too
    keeps = True  # whether what `send` was given outlives this process at once; False: only once it is closed

    @abstractmethod
    def __init__(self, run: Run, sent: int) -> None: ...

    @abstractmethod
    def send(self, rows: Sequence[Row]) -> None:
        """Rows in the order of their steps."""

    def close(self) -> None:  # noqa: B027
        """All that was sent is where it belongs when this returns."""


class Csv(Tracker):
    """metrics.csv in the stage's folder: a line a step, a column a number, empty where a step has none."""

    rewrites = True

    def __init__(self, run: Run, sent: int) -> None:
        self.place, self.rows = run.folder / task.CSV, dict[float, Row]()

    def send(self, rows: Sequence[Row]) -> None:
        self.rows |= {row[STEP]: row for row in rows}  # a stage that goes on has some steps again
        columns = dict.fromkeys([STEP, *(name for row in self.rows.values() for name in row)])
        text = io.StringIO()
        out = csv.DictWriter(text, list(columns), lineterminator="\n")
        out.writeheader()
        out.writerows(self.rows[step] for step in sorted(self.rows))
        files.write(self.place, text.getvalue())


class TensorBoard(Tracker):
    """Event files in tracked/tensorboard/NAME of the stage's folder; `time` is when an event was.

    What a killed process sent and did not note is taken back: TensorBoard leaves out what follows `sent`.
    """

    def __init__(self, run: Run, sent: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.event, self.summary = event_pb2, summary_pb2
        self.writer = EventFileWriter(str(run.folder / task.TRACKED / "tensorboard" / _file_name(run.name)))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self.writer.add_event(event_pb2.Event(session_log=start, step=sent + 1))

    def send(self, rows: Sequence[Row]) -> None:
        value = self.summary.Summary.Value
        for row in rows:
            numbers = [value(tag=name, simple_value=number) for name, number in row.items() if name not in (STEP, TIME)]
            summary = self.summary.Summary(value=numbers)
            self.writer.add_event(self.event.Event(summary=summary, step=int(row[STEP]), wall_time=row.get(TIME, 0.0)))
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Wandb(Tracker):
    """Weights & Biases; offline, in tracked/wandb of the stage's folder, unless WANDB_MODE says otherwise.

    A step that a run has already is none of its news, so what a killed process did not note is sent again.
    """

    keeps = False

    def __init__(self, run: Run, sent: int) -> None:
        import wandb

        self.run = wandb.init(
            project=re.sub(r"[/\\#?%:]", "-", run.project)[:128],
            name=run.name,
            group=run.group or None,
            tags=[tag[:64] for tag in run.tags],
            config=run.settings,
            id=run.id,
            resume="allow",
            mode=os.environ.get("WANDB_MODE") or "offline",
            dir=str(run.folder / task.TRACKED),  # it adds `wandb`
            settings=wandb.Settings(console="off", disable_git=True, disable_code=True),
        )

    def send(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.run.log({name: number for name, number in row.items() if name != STEP}, step=int(row[STEP]))

    def close(self) -> None:
        self.run.finish()


class Trackio(Tracker):
    """Trackio's own folder on this machine, where `trackio show` looks; elsewhere if TRACKIO_SPACE_ID says so.

    It knows a run by its name, which therefore ends with a few letters of the id. Its own clock is called `time`.
    """

    keeps = False

    def __init__(self, run: Run, sent: int) -> None:
        import trackio

        name = f"{run.name} {run.id[-6:]}"
        settings = {"name": run.name, "tags": run.tags, **run.settings}
        self.run = trackio.init(
            project=re.sub(r"[^\w.-]", "-", run.project),
            name=name,
            group=run.group or None,
            config=settings,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        last = getattr(self.run, "_initial_last_step", None)  # of what a killed process sent and did not note
        self.last = max(sent, -1 if last is None else int(last))

    def send(self, rows: Sequence[Row]) -> None:
        for row in (row for row in rows if row[STEP] > self.last):
            numbers = {"wall_time" if name == TIME else name: number for name, number in row.items() if name != STEP}
            self.run.log(numbers, step=int(row[STEP]))

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio, "csv": Csv}


def _file_name(name: str) -> str:
    return re.sub(r"[^\w+. -]", "_", name)
