"""What a stage takes of its devices: the most memory so far, and how busy its GPUs are."""

import ctypes
import resource
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from mmalign.training.engine import world

LOOK = 1.0  # seconds between two looks at a GPU, which itself counts over about as long
GIB = 2.0**30
MEMORY, BUSY = "peak_memory_gib", "gpu_percent"  # their names in the log


class Usage:
    """Asked after every step, and for every line of the log; what cannot be told is left out of it."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.busy = device, busy_of(device)
        self.looked = time.monotonic()
        self.percents: list[float] = []  # since the last line

    def look(self) -> None:
        """Look how busy the GPU is, if that was not done a moment ago."""
        if self.busy and time.monotonic() - self.looked >= LOOK:
            self.looked = time.monotonic()
            percent = self.busy()
            self.percents += [] if percent is None else [percent]

    def line(self) -> dict[str, float]:
        """Of all processes since the last line: the most memory that one of them took, and the mean share of the time
        in which a GPU computed. Every process asks at the same time."""
        peak = torch.tensor(peak_bytes(self.device) / GIB, dtype=torch.float32, device=self.device)
        seen = torch.tensor([sum(self.percents), len(self.percents)], dtype=torch.float32, device=self.device)
        self.percents.clear()
        if world()[1] > 1:
            dist.all_reduce(peak, op=dist.ReduceOp.MAX)
            dist.all_reduce(seen)
        percents, looks = seen.tolist()
        return {MEMORY: round(peak.item(), 4)} | ({BUSY: round(percents / looks, 1)} if looks else {})


def peak_bytes(device: torch.device) -> int:
    """The most that this process's tensors took of its GPU; on a CPU, the most that the process itself took."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # KiB under Linux


class _Rates(ctypes.Structure):
    """nvmlUtilization_t: percent of the time of the last second or less."""

    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


def busy_of(device: torch.device) -> Callable[[], float | None] | None:
    """What tells the percent of the time in which a GPU computed, by the driver's own library, NVML, without a package;
    None: nobody can, as on a CPU, on another maker's GPU, or on a part of one (MIG)."""
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        return _asked(nvml, f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except (OSError, AttributeError):  # no such library, or an older one
        return None


def _asked(nvml: ctypes.CDLL, uuid: str) -> Callable[[], float | None] | None:
    """nvml: the library. Every function of it returns 0 where it did what it should."""
    handle, rates = ctypes.c_void_p(), _Rates()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)):
        return None

    def ask() -> float | None:
        return None if nvml.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(rates)) else float(rates.gpu)

    return None if ask() is None else ask
