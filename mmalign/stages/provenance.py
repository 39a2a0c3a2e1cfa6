"""Where a report's numbers come from: the stages, what each read, its settings as resolved, its time and its cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmalign.io import pages, yaml
from mmalign.io.times import lasting
from mmalign.stages.reproduce import Stages

HOUR = 3600.0  # seconds


@dataclass(frozen=True)
class Line:
    """A stage in the table. hours: of a device, times the devices. reads: (slot, folder)."""

    name: str
    kind: str
    folder: str
    reads: list[tuple[str, str]]
    finished: str
    seconds: float
    devices: int
    arms: list[str]
    settings: str  # YAML

    @property
    def took(self) -> str:
        return lasting(self.seconds)

    @property
    def hours(self) -> float:
        return self.seconds * self.devices / HOUR


def line(folder: str, about: dict[str, Any]) -> Line:
    """A stage, as its stage.json has it."""
    return Line(
        name=about["name"],
        kind=about["kind"],
        folder=folder,
        reads=[(slot, other) for slot, other in about["reads"]],
        finished=about.get("finished", ""),
        seconds=about["seconds"],
        devices=about["devices"],
        arms=[arm for arm in about.get("arms", []) if arm],
        settings=yaml.dump(about["what"]),
    )


def as_json(stages: Stages) -> list[dict[str, Any]]:
    """What report.json has of it."""
    lines = [line(folder, about) for folder, about in stages]
    return [
        {
            "name": one.name, "kind": one.kind, "folder": one.folder, "reads": one.reads, "finished": one.finished,
            "seconds": one.seconds, "devices": one.devices, "device_hours": one.hours,
        }
        for one in lines
    ]  # fmt: skip


def html(stages: Stages, accounts: Sequence[tuple[str, str]]) -> str:
    """The section of the page. accounts: (stage, what it left out or cut)."""
    lines = [line(folder, about) for folder, about in stages]
    return pages.page(
        "mmalign.stages",
        "stages.html",
        stages=lines,
        took=lasting(sum(one.seconds for one in lines)),
        hours=sum(one.hours for one in lines),
        resumed=any(about.get("resumed") for _, about in stages),
        accounts=accounts,
    )
