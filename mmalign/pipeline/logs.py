"""The log of a stage by its name or folder, and its text as it grows."""

import codecs
import time
from collections.abc import Iterator
from pathlib import Path

from mmalign.errors import RunError, suggest
from mmalign.pipeline import lock, standing, status
from mmalign.pipeline.status import WORKS, Row

POLL = 0.2  # seconds between two looks
CHUNK = 1 << 20  # bytes


def named(stage: str, runs: Path) -> list[Row]:
    """The stages that a name or a folder means, the one to look at first: one that runs, else the newest log.

    stage: `align`, `align (sea 7)`, train-4f3a... or a path to that. A RunError where none is called so, or none of
    them was begun.
    """
    folder = Path(stage)
    if folder.is_dir() and (stands := standing.of(folder)):
        called = [status.lone(folder, stands)]
    else:
        rows = _rows(runs)
        called = [row for row in rows if stage in (row.name, row.title, row.folder.name)]
        if not called:
            fix = suggest(stage, {row.name for row in rows})
            raise RunError(f"no stage {stage!r} in {runs}", at=str(runs), fix=fix)
    begun = [row for row in called if row.log]
    if not begun:
        what = f"stage {stage!r} has no log: it was not begun"
        raise RunError(what, at=str(called[0].folder), fix=f"mmalign status {runs}")
    return sorted(begun, key=lambda row: (row.state in WORKS, _time(row)), reverse=True)


def _rows(runs: Path) -> list[Row]:
    """The stages of a folder of runs, each once."""
    return list({row.folder: row for run in status.of(runs) for row in run.rows}.values())


def _time(row: Row) -> float:
    return row.log.stat().st_mtime if row.log else 0.0


def text(folder: Path, follow: bool) -> Iterator[str]:
    """What stands in a stage's log, in pieces; with `follow` also what is written to it until its folder is free."""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    with open(folder / "log.txt", "rb") as log:
        while True:
            runs = follow and lock.holder(folder / lock.NAME) is not None  # asked before the last look
            while piece := log.read(CHUNK):
                yield decode(piece)
            if not runs:
                return
            time.sleep(POLL)
