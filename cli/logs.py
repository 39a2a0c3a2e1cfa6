"""`mmalign logs`: the log of a stage, as it is or as it grows."""

import sys
from pathlib import Path

from mmalign.pipeline import logs, standing
from mmalign.pipeline.status import Row

from .lines import complain, say


def show(stage: str, runs: Path, follow: bool) -> None:
    """Print a stage's log on stdout, and on stderr which of several it is and how the stage stands."""
    row, *others = logs.named(stage, runs)
    if others:
        complain(f"note: {row.folder / 'log.txt'}, of {len(others) + 1} stages with this name: {_folders(others)}")
    for piece in logs.text(row.folder, follow):
        say(piece, end="")
        sys.stdout.flush()
    stands = standing.of(row.folder)
    if follow and stands:
        complain(f"{row.title}: {stands.text}")


def _folders(others: list[Row]) -> str:
    names = [row.folder.name for row in others]
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
