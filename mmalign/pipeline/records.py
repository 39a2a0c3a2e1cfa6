"""What runs mean to do: the plan of each recipe's last run in <runs>/.runs, held locked for as long as it runs.

It only informs, `mmalign status` for one: where it cannot be written a run goes on without it.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from mmalign.errors import RunError
from mmalign.io import files
from mmalign.io.document import Side
from mmalign.pipeline.lock import holder, owner, take_soon
from mmalign.plan.graph import DIGITS, Node

FOLDER = ".runs"


class Planned(TypedDict):
    """A stage of a run."""

    name: str
    kind: str
    arms: list[str]
    folder: str  # its name in the folder of runs
    reads: list[str]  # likewise, of the stages it reads
    what: dict[str, Any]  # everything that can change its result
    devices: Side


class Run(TypedDict):
    recipe: str
    owner: str  # "process N on HOST"
    began: float  # seconds since 1970
    stages: list[Planned]


@dataclass
class Record:
    run: Run
    live: bool  # whether it still runs


@contextmanager
def recorded(nodes: Sequence[Node], devices: int) -> Iterator[Callable[[], None]]:
    """Keep the plan of a run in its folder of runs while it runs, and after: from when what this gives is called, the
    first time that a stage begins. A run that is refused leaves nothing."""
    held: list[int | None] = []

    def begin() -> None:
        if not held:
            held.append(None)
            with suppress(OSError):
                held[0] = _begin(nodes, devices)

    try:
        yield begin
    finally:
        for handle in held:
            if handle is not None:
                os.close(handle)


def _begin(nodes: Sequence[Node], devices: int) -> int:
    """The locked file of a run; an OSError where it cannot be written, or an equal run goes on."""
    place = nodes[0].folder.parent / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    recipe = nodes[0].recipe.name
    digest = hashlib.sha256("\n".join([recipe, *(node.folder.name for node in nodes)]).encode()).hexdigest()
    own = place / f"{digest[:DIGITS]}.json"
    handle = os.open(own, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        take_soon(handle)
        run = Run(
            recipe=recipe, owner=owner(), began=round(time.time(), 3), stages=[planned(n, devices) for n in nodes]
        )
        text = json.dumps(run).encode()
        os.pwrite(handle, text, 0)  # no rename: the lock is this file's
        os.ftruncate(handle, len(text))
    except OSError:
        os.close(handle)
        raise
    _forget(place, recipe, own)
    return handle


def planned(node: Node, devices: int) -> Planned:
    """A stage on so many devices, as it is kept."""
    return Planned(
        name=node.name,
        kind=node.stage.kind,
        arms=[arm for arm in node.arms if arm],
        folder=node.folder.name,
        reads=[other.folder.name for _, other in node.reads],
        what=node.what,
        devices=1 if node.stage.alone else devices,
    )


def _forget(folder: Path, recipe: str, own: Path) -> None:
    """Remove what older runs of a recipe left, but for those that still run."""
    for place, record in _read(folder):
        if record.run["recipe"] == recipe and place != own and not record.live:
            with suppress(OSError):
                place.unlink()


def of(runs: Path) -> list[Record]:
    """The runs of a folder, in the order they began."""
    return sorted((record for _, record in _read(runs / FOLDER)), key=lambda record: record.run["began"])


def _read(folder: Path) -> Iterator[tuple[Path, Record]]:
    for place in sorted(folder.glob("*.json")):
        live = holder(place) is not None  # asked first: one that ends meanwhile was whole
        with suppress(RunError):  # one that is being written, or is of another mmalign
            run: Run = files.read_json(place, kind=Run)
            if all(Path(stage["folder"]).name == stage["folder"] for stage in run["stages"]):  # none leads elsewhere
                yield place, Record(run, live)
