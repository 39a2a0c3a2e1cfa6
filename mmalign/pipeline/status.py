"""What ran, runs, failed and waits in a folder of runs, run by run."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from mmalign.errors import RunError
from mmalign.io import document, yaml
from mmalign.pipeline import progress, records, remaining, stalled, standing
from mmalign.pipeline.progress import Progress, Spike
from mmalign.pipeline.records import Planned, Record
from mmalign.pipeline.standing import Standing

UNBEGUN = {True: "waits", False: "not run"}  # whether its run still runs
WORKS = ("running", "stopped", "ending")  # states in which somebody holds the folder


@dataclass
class Row:
    """A stage. left: seconds it still takes, of one that runs or waits; None: not known. seconds: it took. silent:
    seconds since it was last heard of, and metrics: its newest losses and speeds, of one that runs. spikes: of its loss
    and gradient, of one that is not done."""

    name: str
    kind: str
    arms: list[str]
    folder: Path
    standing: Standing
    progress: Progress | None = None
    left: float | None = None
    seconds: float | None = None
    silent: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    spikes: list[Spike] = field(default_factory=list)

    @property
    def state(self) -> str:
        return self.standing.state

    @property
    def title(self) -> str:
        """Its name, with its arm where it is of one."""
        return f"{self.name} ({self.arms[0]})" if len(self.arms) == 1 else self.name

    @property
    def log(self) -> Path | None:
        """Its log, where it was begun."""
        place = self.folder / "log.txt"
        return place if place.exists() else None


@dataclass
class Run:
    """The stages of a recipe's last run; those of no run that is known stand under their recipe, without an owner."""

    recipe: str
    rows: list[Row]
    owner: str = ""  # "process N on HOST"
    began: float | None = None  # seconds since 1970
    live: bool = False
    unknown: list[str] = field(default_factory=list)  # stages that wait for so long as nobody can tell

    @property
    def state(self) -> str:
        """`running`, `done`, or how its first stage stands that is not done but was begun."""
        if self.live:
            return "running"
        stopped = [row.state for row in self.rows if row.state not in ("done", "not run")]
        return "done" if all(row.state == "done" for row in self.rows) else next(iter(stopped), "not run")

    @property
    def done(self) -> int:
        return sum(row.state == "done" for row in self.rows)

    @property
    def left(self) -> float | None:
        """Seconds until all of it is done, where it runs; without `unknown`, and None where nothing is known."""
        known = [row.left for row in self.rows if row.left is not None]
        return sum(known) if self.live and known else None


def of(runs: Path) -> list[Run]:
    """The runs of a folder, in the order they began, behind stages that are of none. A RunError where there are none.

    Nothing is loaded, changed or waited for.
    """
    if not runs.is_dir():
        raise RunError(f"no folder {runs}", at=str(runs), fix="mmalign run quickstart, or another --runs")
    times = remaining.Times(runs)
    known = [_run(record, runs, times) for record in records.of(runs)]
    shown = {row.folder for run in known for row in run.rows}
    return [*_others(runs, shown), *known]


def _run(record: Record, runs: Path, times: remaining.Times) -> Run:
    run = record.run
    rows = list(_rows(run["stages"], runs, record.live))
    result = Run(run["recipe"], rows, run["owner"], run["began"], record.live)
    for row, stage in zip(rows, run["stages"], strict=True):
        if record.live and row.state != "done":
            row.left = _left(row, times.of(stage))
            if row.left is None:
                result.unknown.append(row.name)
    return result


def _left(row: Row, expected: float | None) -> float | None:
    """Seconds: as it goes on, where that is seen, else as long as its like took. expected: from its beginning."""
    if row.state != "running":
        return expected
    if row.progress and row.progress.left is not None:
        return row.progress.left
    began = _time(row.folder)  # its stage.yaml is written as it begins
    return expected if expected is None or not began else max(0.0, expected - (time.time() - began))


def _rows(stages: Sequence[Planned], runs: Path, live: bool) -> Iterator[Row]:
    names: dict[str, str] = {}  # folder: name, of stages that are not done
    for stage in stages:
        folder = runs / stage["folder"]
        after = dict.fromkeys(names[other] for other in stage["reads"] if other in names)
        unbegun = Standing(UNBEGUN[live], f"after {', '.join(after)}" if after else "")
        row = _row(stage["name"], stage["kind"], stage["arms"], folder, standing.of(folder) or unbegun)
        if row.state != "done":
            names[stage["folder"]] = stage["name"]
        yield row


def _row(name: str, kind: str, arms: list[str], folder: Path, stands: Standing) -> Row:
    row = Row(name, kind, arms, folder, stands)
    if stands.about:
        seconds = stands.about.get("seconds")
        row.seconds = seconds if isinstance(seconds, (int, float)) else None
    elif stands.state not in UNBEGUN.values():
        row.progress, row.spikes = progress.of(folder), progress.spikes(folder)
    if stands.state in WORKS:
        row.silent, row.metrics = stalled.silent(folder), progress.metrics(folder)
    return row


class Begun(TypedDict):
    """Of a stage.yaml or a stage.json."""

    recipe: str
    name: str
    arms: NotRequired[list[str]]


def _others(runs: Path, shown: set[Path]) -> list[Run]:
    """Stages that no known run has, by their recipe."""
    found: dict[str, list[Row]] = {}
    for folder in sorted(runs.glob("*-*"), key=_time):
        if folder in shown or "." in folder.name or (stands := standing.of(folder)) is None:
            continue
        found.setdefault(_begun(stands, folder)["recipe"], []).append(lone(folder, stands))
    return [Run(recipe, rows) for recipe, rows in found.items()]


def lone(folder: Path, stands: Standing) -> Row:
    """A stage by what its own folder says of it."""
    about = _begun(stands, folder)
    arms = [arm for arm in about.get("arms", []) if arm]
    return _row(about["name"], folder.name.rpartition("-")[0], arms, folder, stands)


def _begun(stands: Standing, folder: Path) -> Begun:
    """What a stage is; of one whose files do not say it, the name of its folder."""
    about: Any = stands.about
    with suppress(RunError):
        about = about or yaml.read(folder / "stage.yaml", RunError).raw
    return Begun(recipe="", name=folder.name) if document.problem(about, Begun) else about


def _time(folder: Path) -> float:
    """When a stage was done or begun, in seconds since 1970."""
    for name in ("stage.json", "stage.yaml"):
        with suppress(OSError):
            return (folder / name).stat().st_mtime
    return 0.0
