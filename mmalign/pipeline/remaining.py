"""How long stages that wait will take, where that can be told: as long as the newest alike stage that was run.

Alike are stages made from the same things but for the seed, the optimizer's settings, the weights they read and the
number of their steps, on as many devices. Of others nothing is said.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from mmalign.errors import RunError
from mmalign.io import files
from mmalign.pipeline.records import Planned

LOOSE = ("seed", "arms")  # of what a stage is made from, what has nothing to do with its time


class Took(TypedDict):
    """Of a stage.json. seconds: of its last beginning alone."""

    kind: str
    seconds: float
    devices: int
    what: dict[str, Any]
    resumed: NotRequired[bool]  # True: it had been begun before, so it took longer than that


class Times:
    """The seconds that finished stages took. kinds: of stages, that are looked at; None: all."""

    def __init__(self, runs: Path, kinds: Iterable[str] | None = None) -> None:
        patterns = ["*-*"] if kinds is None else [f"{kind}-*" for kind in set(kinds)]
        places = [place for pattern in patterns for place in runs.glob(f"{pattern}/stage.json")]
        self.known: dict[str, tuple[float, int | None]] = {}  # the newest: (seconds, steps)
        for place in sorted(places, key=_written):
            try:
                took: Took = files.read_json(place, kind=Took)
            except RunError:  # of 0.1.0, or damaged: whoever reads it says so
                continue
            if not took.get("resumed"):
                self.known[_likeness(took["what"], took["devices"])] = took["seconds"], _steps(took["what"])

    def of(self, stage: Planned) -> float | None:
        """Seconds that a stage will take from its beginning; None: that cannot be told."""
        known = self.known.get(_likeness(stage["what"], stage["devices"]))
        if known is None:
            return None
        (seconds, steps), own = known, _steps(stage["what"])
        return seconds * own / steps if own and steps else seconds


def _written(place: Path) -> float:
    try:
        return place.stat().st_mtime
    except OSError:  # set aside meanwhile
        return 0.0


def _likeness(what: Mapping[str, Any], devices: int) -> str:
    """Equal for stages that are alike."""
    settings = {key: value for key, value in what.get("settings", {}).items() if key != "optim"}
    if _steps(what):
        settings["steps"] = "some"
    reads = [slot for slot, _ in what.get("reads", [])]
    own = {key: value for key, value in what.items() if key not in LOOSE}
    return json.dumps([{**own, "settings": settings, "reads": reads}, devices], sort_keys=True)


def _steps(what: Mapping[str, Any]) -> int | None:
    steps = what.get("settings", {}).get("steps")
    return steps if isinstance(steps, int) and steps > 0 else None
