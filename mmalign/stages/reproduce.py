"""How to make a report again: the command, the recipe's files, the versions, the dates and the time it took."""

import shlex
from collections.abc import Sequence
from typing import Any

from mmalign.io import pages
from mmalign.io.times import lasting
from mmalign.pipeline.task import Task

Stages = Sequence[tuple[str, dict[str, Any]]]  # (folder's name, stage.json)


def command(task: Task, stages: Stages) -> str:
    """The line that runs all of it; `hosts` stands for a host file, where there were several. Empty where an older
    mmalign did not write down what it was asked for."""
    if not task.asked:
        return ""
    devices = max((about["devices"] for _, about in stages), default=1)
    several = any(len(about.get("hosts", [])) > 1 for _, about in stages)
    where = ["--hosts", "hosts"] if several else ["--devices", str(devices)] if devices > 1 else []
    return shlex.join(["mmalign", "run", *task.asked, *where])


def versions(stages: Stages) -> dict[str, str]:
    """{what: its version} of all that the stages' records know; several where they differ."""
    known: dict[str, dict[str, None]] = {}
    for _, about in stages:
        own = {"mmalign": about.get("mmalign"), **about.get("software", {}), **about.get("hardware", {})}
        for name, version in own.items():
            if version:
                known.setdefault(name, {})[str(version)] = None
    return {name: ", ".join(several) for name, several in known.items()}


def html(task: Task, stages: Stages) -> str:
    """The section of the page."""
    ends = sorted(about["finished"] for _, about in stages if about.get("finished"))
    return pages.page(
        "mmalign.stages",
        "reproduce.html",
        command=command(task, stages),
        versions=versions(stages),
        finished=[*dict.fromkeys((ends[0], ends[-1]))] if ends else [],
        took=lasting(sum(about["seconds"] for _, about in stages)),
        resumed=any(about.get("resumed") for _, about in stages),
        sources=task.sources,
    )
