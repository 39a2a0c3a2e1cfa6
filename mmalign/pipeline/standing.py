"""How a stage stands: done, running, failed, interrupted, killed or not begun, each from what lies in its folder.

    done         stage.json, which is written last
    running      somebody holds its lock, which ends with the last process that does, killed or not
      stopped    likewise, and one of its processes is stopped
      ending     likewise, but the run that began it is gone
    failed       error.json, in which the stage or its run left word
    interrupted  likewise, that it was not the stage's fault: Ctrl-C
    killed       begun, and none of these: kill -9, or the machine went down
    damaged      stage.json cannot be read

No clock is asked: a stage that says nothing for a long time runs as long as its processes do.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.errors import MMAlignError, RunError
from mmalign.io import seal
from mmalign.io.steps import complete, step_of
from mmalign.pipeline import ended, lock
from mmalign.pipeline.stalled import below, state
from mmalign.plan import graph
from mmalign.plan.graph import Finished, Node


@dataclass(frozen=True)
class Standing:
    """state: one of those above. why: behind it, in a line. at, fix: of a failure. time: seconds since 1970, of a
    failure or interruption. about: the stage.json of one that is done. owner: `process N on HOST`, who runs it."""

    state: str
    why: str = ""
    at: str = ""
    fix: str = ""
    time: float | None = None
    about: dict[str, Any] | None = None
    owner: str = ""

    @property
    def text(self) -> str:
        """In a line, for a table."""
        return f"{self.state}{_BEHIND.get(self.state, ' ')}{self.why}" if self.why else self.state


_BEHIND = {"failed": ": ", "running": ": ", "stopped": ": ", "ending": ": ", "damaged": ": ", "killed": "; "}


def of(folder: Path) -> Standing | None:
    """How the stage of a folder stands; None: it was not begun."""
    if (place := folder / "stage.json").exists():
        return _done(place)
    if (owner := lock.holder(folder / lock.NAME)) is not None:
        return _held(owner)
    if not (folder / "stage.yaml").exists():
        return None
    try:
        said = ended.read(folder)
    except RunError as err:
        return Standing("failed", err.what, err.at, err.fix)
    newest = next(iter(complete(folder / "checkpoints")), None)
    on = f"goes on from step {step_of(newest)}" if newest else "goes on"
    if said is None:
        return Standing("killed", on)
    if said.get("interrupted"):
        return Standing("interrupted", f"({said['what']}); {on}", said["at"], said["fix"], said.get("time"))
    return Standing("failed", said["what"], said["at"], said["fix"], said.get("time"))


def _done(place: Path) -> Standing:
    try:
        return Standing("done", about=seal.read(place, kind=Finished))
    except MMAlignError as err:
        return Standing("damaged", err.what, err.at, err.fix)


def _held(owner: str) -> Standing:
    process = lock.here(owner)
    if state(process) == "gone":
        return Standing("ending", f"{owner} is gone", owner=owner)
    stopped = [one for one in below(process) if state(one) == "stopped"] if process else []
    if stopped:
        return Standing("stopped", f"kill -CONT {' '.join(map(str, stopped))} lets it go on", owner=owner)
    return Standing("running", owner, owner=owner)


def told(node: Node, stands: Standing | None) -> str:
    """How a stage of a recipe stands, in a line; of one that was not begun, why it has to run."""
    if node.done:
        return "done"
    return stands.text if stands else graph.why(node)


def failure(stands: Standing, folder: Path) -> dict[str, Any] | None:
    """{what, at, fix, log, folder, time} of a stage that failed, `time` in seconds since 1970; None of others."""
    if stands.state not in ("failed", "damaged"):
        return None
    places = {"log": str(folder / "log.txt"), "folder": str(folder), "time": stands.time}
    return {"what": stands.why, "at": stands.at, "fix": stands.fix, **places}
