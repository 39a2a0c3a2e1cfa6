"""What work in this process costs: a clock that other processes do not slow, and the most memory a call holds."""

import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from . import seconds


def clock() -> float:
    """Seconds of this process on the CPU; with a GPU, of the wall once all its work is done."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak(call: Callable[[], object]) -> int:
    """Bytes of torch's own tensors at the worst moment, above the level before the call."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    held = most = 0
    results = seen.profiler.kineto_results
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        most = max(most, held)
    return most


def timed(call: Callable[[], object]) -> tuple[float, int]:
    """Seconds, and bytes at the worst moment; counting a few large tensors takes no time worth the name."""
    spent: list[float] = []
    most = peak(lambda: spent.append(seconds(call, clock)))
    return spent[0], most
