"""What a stage takes of its devices: memory against what the system says, and a GPU's library in a stand-in's place."""

import ctypes
import json
import resource
from types import SimpleNamespace

import pytest
import torch

from mmalign.training import usage
from mmalign.training.usage import Usage

CPU = torch.device("cpu")


class Nvml:
    """As libnvidia-ml.so: each function returns 0, or what is wrong."""

    def __init__(self, percents, known=b"GPU-1"):
        self.percents, self.known = iter(percents), known
        self.nvmlInit_v2 = lambda: 0

    def nvmlDeviceGetHandleByUUID(self, uuid, handle):
        return 0 if uuid == self.known else 6

    def nvmlDeviceGetUtilizationRates(self, handle, rates):
        percent = next(self.percents)
        if percent is None:
            return 3
        rates._obj.gpu, rates._obj.memory = percent, 99
        return 0


def test_on_a_cpu_it_is_the_most_that_the_process_took():
    """In KiB under Linux; never less than before."""
    before = usage.peak_bytes(CPU)
    assert before == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    kept = torch.ones(before // 4 + (16 << 20) // 4)  # more than all that was ever taken, and 16 MiB
    assert usage.peak_bytes(CPU) - before >= 16 << 20
    del kept
    assert Usage(CPU).line() == {"peak_memory_gib": pytest.approx(usage.peak_bytes(CPU) / 2**30, abs=1e-3)}


def test_a_gpu_is_asked_by_its_own_name_and_what_it_does_not_tell_is_none():
    assert usage._asked(Nvml([]), "GPU-2") is None
    assert usage._asked(Nvml([None]), "GPU-1") is None  # a part of a GPU
    ask = usage._asked(Nvml([5, 40, None]), "GPU-1")
    assert ask() == 40.0
    assert ask() is None


def test_a_gpu_is_looked_at_now_and_then_and_a_line_is_the_mean(monkeypatch):
    now, percents = [0.0], iter([50.0, None, 100.0, 10.0])
    monkeypatch.setattr(usage.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(usage, "busy_of", lambda _: lambda: next(percents))
    taken = Usage(CPU)
    for now[0] in (0.5, 1.0, 1.5, 2.0, 3.2):
        taken.look()
    assert taken.line()["gpu_percent"] == 75.0
    assert "gpu_percent" not in taken.line()  # nobody looked since
    now[0] = 9.0
    taken.look()
    assert taken.line()["gpu_percent"] == 10.0


def test_several_processes_tell_the_most_memory_and_the_mean_of_their_gpus(monkeypatch):
    """The other one has taken 100 GiB, and looked once: at 90 percent."""
    monkeypatch.setattr(usage, "world", lambda: (0, 2))

    def all_reduce(value, op=None):
        if op == usage.dist.ReduceOp.MAX:
            value.clamp_(min=100.0)
        else:
            value += torch.tensor([90.0, 1.0])

    monkeypatch.setattr(usage.dist, "all_reduce", all_reduce)
    taken = Usage(CPU)
    taken.percents = [30.0, 60.0]
    assert taken.line() == {"peak_memory_gib": 100.0, "gpu_percent": 60.0}


@pytest.mark.parametrize("missing", [OSError("no such file"), AttributeError("nvmlInit_v2")])
def test_without_the_library_nothing_is_told(monkeypatch, missing):
    def library(name):
        raise missing

    monkeypatch.setattr(ctypes, "CDLL", library)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1"))
    assert usage.busy_of(torch.device("cuda", 0)) is None
    assert usage.busy_of(CPU) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_both_are_told(monkeypatch):
    device = torch.device("cuda", torch.cuda.current_device())
    monkeypatch.setattr(usage, "LOOK", 0.0)
    taken = Usage(device)
    kept = torch.ones(64 << 20, device=device)
    taken.look()
    line = taken.line()
    assert line["peak_memory_gib"] >= kept.nbytes / 2**30
    assert 0 <= line.get("gpu_percent", 0) <= 100
    assert json.dumps(line)
