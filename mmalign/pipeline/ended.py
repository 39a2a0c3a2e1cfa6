"""error.json: how a stage ended that is not done. It stands in the folder until the stage begins again."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from mmalign.io import files

NAME = "error.json"


class Ended(TypedDict):
    what: str
    at: str
    fix: str
    exit_code: NotRequired[int]  # of the command; left out: a stage failed
    time: NotRequired[float]  # seconds since 1970
    interrupted: NotRequired[bool]  # True: by whoever ran it; the stage itself did not fail


def write(folder: Path, what: str, at: str, fix: str, **more: Any) -> None:
    """Leave word of the end; on a full disk there may be no room for it."""
    with suppress(OSError):
        files.write_json(folder / NAME, {"what": what, "at": at, "fix": fix, "time": round(time.time(), 3), **more})


def read(folder: Path) -> Ended | None:
    """What was left; None: nothing. A RunError that names the log where it cannot be read."""
    if not (place := folder / NAME).exists():
        return None
    ended: Ended = files.read_json(place, kind=Ended, fix=str(folder / "log.txt"))
    return ended
