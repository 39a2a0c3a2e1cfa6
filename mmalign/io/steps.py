"""The checkpoints of a running stage by their names, step-N: which are whole, and the newest."""

import re
from pathlib import Path

NAME = re.compile(r"step-([0-9]{1,18})")


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, the newest first."""
    places = [path.parent for path in folder.glob("step-*/step.json") if NAME.fullmatch(path.parent.name)]
    return sorted(places, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The steps that were done when it was written."""
    return int(checkpoint.name.removeprefix("step-"))
