"""How long work takes: what this machine multiplies in a second, and what was measured on a GPU."""

import time
from collections.abc import Mapping
from functools import cache

from mmalign.io import processor
from mmalign.io.times import lasting

# Dense bf16 products, in operations a second, as their maker gives them; fp16 where a device has no bf16.
PEAKS = {
    "B200": 2250e12, "GH200": 989e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12,
    "A800": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "A40": 150e12, "A10G": 70e12, "A10": 125e12,
    "A6000": 155e12, "V100": 125e12, "T4": 65e12, "5090": 209e12, "4090": 165e12, "3090": 71e12,
}  # fmt: skip
MEASURED = "H200"  # tests/speed/RESULTS.md
GPU = 0.33  # of its peak, by steps of Vicuna-7B and Gemma-2B there: 0.26 to 0.39; small models reach less
# of a core's fp32 products, by steps of `first_real`: 0.68 to 0.81, 1.94 to 2.24 with instructions for bf16; without,
# products in bf16 were a fifth as fast as in fp32 where it was measured
CPU = {"fp32": 0.75, "bf16": 2.0}
EMULATED = 0.15
SIDE, TRIES = 1024, 4


@cache
def products() -> float:
    """fp32 operations a second of this process's cores: the best of a few products of matrices, some 0.1 s in all."""
    import numpy as np

    one = np.full((SIDE, SIDE), 0.5, np.float32)
    best = float("inf")
    for _ in range(TRIES):
        began = time.perf_counter()
        one @ one
        best = min(best, time.perf_counter() - began)
    return 2.0 * SIDE**3 / best


@cache
def gpus() -> tuple[str, ...]:
    """Names of this machine's GPUs; none where nvidia-smi tells of none."""
    told = processor.gpus()
    return () if told.startswith("none") else tuple(one.split(",")[0].strip() for one in told.split(";"))


def seconds(flops: float, devices: int, precision: str = "bf16") -> dict[str, float]:
    """{where: how long so many operations take at least}: on the measured GPU, and on this machine's GPUs or cores.

    devices: processes; on cores they share what there is. precision: fp32 or bf16; on GPUs bf16 is taken.
    """
    times = {_many(devices, MEASURED): flops / (devices * GPU * PEAKS[MEASURED])}
    if names := gpus():
        if peak := next((value for name, value in PEAKS.items() if name in names[0]), None):
            times[_many(devices, names[0])] = flops / (devices * GPU * peak)
        return times
    share = EMULATED if precision == "bf16" and processor.lacks_bf16() else CPU[precision]
    return times | {f"this machine's {processor.cores()} cores": flops / (share * products())}


def line(flops: float, times: Mapping[str, float]) -> str:
    """For the reader of a plan."""
    told = ", ".join(f"{lasting(value)} on {where}" for where, value in times.items())
    return f"work: {amount(flops)}, without reading data about {told}"


def amount(flops: float) -> str:
    for unit, size in (("ZFLOP", 1e21), ("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops / 1e9:.3g} GFLOP"


def _many(devices: int, name: str) -> str:
    return f"one {name}" if devices == 1 else f"{devices} {name}"
