"""How fast a CPU multiplies matrices in bf16 and in fp32: measured, once in a process, in milliseconds.

Its flags do not tell. Without instructions for bf16 a product takes several times as long as in fp32, with them a
fraction; which of them are used PyTorch and oneDNN decide each for itself, and ONEDNN_MAX_CPU_ISA takes them back from
the one alone.

`python -m mmalign.labels.throughput` prints both rates.
"""

import json
import time
from functools import cache

import torch

ROWS, WIDTH, COLUMNS = 64, 256, 1024  # of the product, for each thread: all of it lies in a core's cache
TIMES = 4  # the fastest counts: whatever else runs here only makes it slower
GAIN = 1.5  # times fp32's rate from which bf16 is taken for fast: noise does not decide where they are alike


@cache
def rates() -> dict[torch.dtype, float]:
    """Operations a second of a thread, of products in fp32 and in bf16."""
    return {dtype: _rate(dtype) for dtype in (torch.float32, torch.bfloat16)}


def half_is_fast(device: torch.device) -> bool:
    """Whether products in bf16 are much faster than in fp32; of a GPU that is known, a CPU is asked once."""
    if device.type != "cpu":
        return True
    return rates()[torch.bfloat16] > GAIN * rates()[torch.float32]


def _rate(dtype: torch.dtype) -> float:
    threads = torch.get_num_threads()
    rows_RD, columns_CD = (torch.full((many, WIDTH), 0.5, dtype=dtype) for many in (ROWS, threads * COLUMNS))
    product_RC = torch.empty(ROWS, threads * COLUMNS, dtype=dtype)
    seconds = []
    for _ in range(1 + TIMES):  # the first one prepares
        began = time.perf_counter()
        torch.mm(rows_RD, columns_CD.T, out=product_RC)
        seconds.append(time.perf_counter() - began)
    return 2 * ROWS * WIDTH * COLUMNS / min(seconds[1:])


if __name__ == "__main__":
    print(json.dumps([*rates().values()]))
