"""A stage that ran out of memory: how that is known, and what is told."""

import os
import re
from collections.abc import Mapping

from mmalign.errors import StageError
from mmalign.pipeline import ranks
from mmalign.pipeline.task import Task
from mmalign.plan import estimate, relief
from mmalign.plan.cards import Card
from mmalign.plan.recipe import Stage

DEVICE = re.compile(r"(CUDA|HIP|XPU|MPS|CUBLAS).*(out of memory|ALLOC_FAILED)|OutOfMemoryError", re.DOTALL)
ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) ?([KMGT]i?B|bytes)")
SIZES = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def short(err: BaseException) -> str | None:
    """What is told where an exception says that there is no memory left; None: it does not."""
    text = str(err)
    if type(err).__name__ == "OutOfMemoryError" or (isinstance(err, RuntimeError) and DEVICE.search(text)):
        kind = "out of GPU memory"
    elif isinstance(err, MemoryError) or "DefaultCPUAllocator" in text:
        kind = "out of memory"
    else:
        return None
    if not (asked := ASKED.search(text)):
        return kind
    size = float(asked[1]) * SIZES.get(asked[2], 1 << 30) / estimate.GIB
    return f"{kind}, {estimate.size_of(size)} were asked for"


def error(short: str, task: Task, rank: int) -> StageError:
    """What is told of a rank that ran out of memory, with what could be changed."""
    what = relief.told(task.stage, task.cards, int(os.environ.get("WORLD_SIZE", "1")))
    own = relief.readers(task.stage) if "GPU" not in short else ""
    fix = ", or ".join(filter(None, [what, own]))
    return StageError(short, at=ranks.where(task.folder, rank) or str(task.folder), fix=fix)


def perhaps(stage: Stage, cards: Mapping[str, Card], devices: int) -> str:
    """What to try where a stage was killed by signal 9, which the system sends where memory is short."""
    what = ", or ".join(filter(None, [relief.readers(stage), relief.told(stage, cards, devices)]))
    return "the same command goes on; signal 9 often means out of memory" + (f": {what}" if what else "")
