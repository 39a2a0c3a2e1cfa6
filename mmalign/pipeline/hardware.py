"""What a stage runs on: processor, memory and GPUs; nothing heavy is imported to know it."""

import os
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from mmalign.io import processor

GIB = 2**30


@cache
def used() -> dict[str, str]:
    """{what: its name} of this machine: architecture, Python, processor, memory; GPUs where the stage has loaded torch.

    cores: those this process may run on. gpus: of this machine, `8 x NVIDIA H200`.
    """
    about = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cores": str(processor.cores()),
    }
    return {name: value for name, value in {**about, "memory": _memory(), "gpus": _gpus()}.items() if value}


def of_hosts(gpus: Sequence[str]) -> dict[str, str]:
    """`used` of this machine, where several of them were; gpus: those of each host."""
    if len(gpus) < 2:
        return used()
    (kind, count), *others = [*Counter(filter(None, gpus)).items(), ("", 0)]
    told = [f"{kind} on {count} host{'s' * (count > 1)}", *(f"{other} on {many}" for other, many in others if many)]
    return used() | ({"gpus": ", ".join(told)} if kind else {})


def _cpu() -> str:
    """The processor's name; empty where the system does not tell it."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return platform.processor()


def _memory() -> str:
    with suppress(ValueError, OSError, AttributeError):
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.0f} GiB"
    return ""


def _gpus() -> str:
    """Empty where there are none, or torch, which knows them, is not in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return ""
    names = Counter(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    return ", ".join(f"{count} x {name}" for name, count in names.items())
