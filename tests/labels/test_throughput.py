"""What the probe of products says, and that it says so in a process whose instructions are limited."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch

from mmalign.labels import throughput

CPU = torch.device("cpu")
SLOW = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
ASKED = """
import json, torch
from mmalign.labels.rank import Bank
from mmalign.labels.throughput import rates
torch.manual_seed(0)
text_WJ = torch.nn.functional.normalize(torch.randn(2000, 64), dim=-1)
patch_NJ = torch.nn.functional.normalize(torch.randn(7, 64), dim=-1)
bank = Bank.of(text_WJ)
words_NK, _ = bank.best(patch_NJ, 5)
want = (patch_NJ.double() @ text_WJ.double().T).topk(5).indices
full, half = rates().values()
print(json.dumps({"kind": type(bank.rough).__name__, "right": bool((words_NK == want).all()), "gain": half / full}))
"""


@pytest.mark.parametrize(("gain", "fast"), [(0.2, False), (1.0, False), (1.4, False), (1.6, True), (8.0, True)])
def test_bf16_is_fast_where_it_is_clearly_faster(gain, fast, monkeypatch):
    monkeypatch.setattr(throughput, "rates", lambda: {torch.float32: 1e9, torch.bfloat16: gain * 1e9})
    assert throughput.half_is_fast(CPU) is fast
    assert throughput.half_is_fast(torch.device("cuda"))


def test_it_is_measured_once_and_draws_nothing():
    throughput.rates.cache_clear()
    before = torch.get_rng_state()
    first = throughput.rates()
    assert throughput.rates() is first
    assert torch.equal(torch.get_rng_state(), before)
    assert all(1e7 < rate < 1e15 for rate in first.values())


def test_it_measures_the_product_that_it_says(monkeypatch):
    """So many operations over the fastest of its times; threads share the work and the rate is that of one."""
    clock = iter([0.0, 9.0, 10.0, 10.5, 20.0, 20.25, 30.0, 31.0, 40.0, 41.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(throughput.torch, "get_num_threads", lambda: 3)
    operations = 2 * throughput.ROWS * throughput.WIDTH * throughput.COLUMNS
    assert throughput._rate(torch.float32) == operations / 0.25


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the variables are for x86")
def test_a_cpu_without_bf16_units_ranks_in_fp32():
    line = [sys.executable, "-c", ASKED]
    done = subprocess.run(line, env={**os.environ, **SLOW}, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["right"]
    assert told["gain"] < throughput.GAIN
    assert told["kind"] == "Full"
