"""What work in this process costs: a clock that other processes do not slow, and the most memory a call holds; and
models as large as a GPU's, made where they are used."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from mmalign.llms import causal
from mmalign.vision import hf

from . import seconds


def clock() -> float:
    """Seconds of this process on the CPU; with a GPU, of the wall once all its work is done."""
    return wall() if torch.cuda.is_available() else time.process_time()


def wall() -> float:
    """Seconds of the wall; with a GPU, once all its work is done."""
    if torch.cuda.is_available():
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


@contextmanager
def made_there() -> Iterator[None]:
    """Models of transformers with random weights are made on the GPU, in bf16; without one, as ever."""
    if not torch.cuda.is_available():
        yield
        return
    with patch.object(hf, "load", on_gpu(hf.load)), patch.object(causal, "_load", on_gpu(causal._load)):
        yield


def on_gpu(make: Callable[..., Any]) -> Callable[..., Any]:
    """What makes a model, made to make it on the GPU and in bf16."""

    def made(*args: Any, **options: Any) -> Any:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device("cuda"):
                return make(*args, **options)
        finally:
            torch.set_default_dtype(before)

    return made
