"""A stage that ran out of memory says so, where it was, and what to change by how much."""

import json
from pathlib import Path

import pytest
import torch

from mmalign.io import beats
from mmalign.pipeline import memory, task, worker
from mmalign.plan import estimate, graph, relief
from mmalign.plan import read as compose
from mmalign.stages import evaluate, train

GPU = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1.03 GiB is free."
)
CPU = (
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "1099511627776 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("err", "what"),
    [
        (torch.OutOfMemoryError(GPU), "out of GPU memory, 2.5 GiB were asked for"),
        (torch.OutOfMemoryError("Tried to allocate 20.00 MiB"), "out of GPU memory, 20.0 MiB were asked for"),
        (RuntimeError("CUDA error: out of memory"), "out of GPU memory"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
            "out of GPU memory",
        ),
        (RuntimeError(CPU), "out of memory, 1024.0 GiB were asked for"),
        (MemoryError(), "out of memory"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (ValueError("out of memory"), None),
    ],
)
def test_what_says_that_there_is_no_memory(err, what):
    assert memory.short(err) == what


def test_torch_says_so_itself():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert memory.short(caught.value) == "out of memory, 1048576.0 GiB were asked for"


def failed(node, module, monkeypatch, err) -> dict:
    """error.json of a stage whose run raises this."""
    task.save(node)
    (node.folder / "events.jsonl").touch()

    def run(given):
        beats.tell(3, "steps", "trains")
        raise err

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(worker.weights, "begin", lambda given: None)  # the stages before it were not run
    monkeypatch.setattr("sys.argv", ["worker", str(node.folder)])
    monkeypatch.setattr(worker, "_log", lambda level: None)
    assert worker.main() == 1
    return json.loads((node.folder / "error.json").read_text())


@pytest.fixture
def nodes(tiny):
    return {node.name: node for node in graph.plan(compose.load(tiny, []), Path("runs"))}


def test_a_training_on_a_gpu(nodes, monkeypatch):
    node = nodes["tune"]
    said = failed(node, train, monkeypatch, torch.OutOfMemoryError(GPU))
    assert said["what"] == "out of GPU memory, 2.5 GiB were asked for"
    assert said["at"] == "3 steps done, trains"
    assert said["fix"] == relief.told(node.stage, node.cards)
    before = estimate.size_of(estimate.of(node).memory["ZeRO 0"]["total"])
    assert f"micro_batch: 4 -> 2 ({before} -> " in said["fix"]
    assert "workers" not in said["fix"]


def test_a_training_on_cpus_by_its_rank(nodes, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    node = nodes["tune"]
    beats.Heart(node.folder, 0)
    said = failed(node, train, monkeypatch, RuntimeError(CPU))
    assert said["what"] == "out of memory, 1024.0 GiB were asked for"
    assert said["at"].startswith("rank 1 (process ")
    assert said["at"].endswith("): 3 steps done, trains")
    assert said["fix"] == f"{relief.told(node.stage, node.cards, 2)}, or engine.workers: 1 -> 0"
    assert "engine.zero: 0 -> 3 (" in said["fix"]


def test_an_evaluation(nodes, monkeypatch):
    said = failed(nodes["score"], evaluate, monkeypatch, torch.OutOfMemoryError(GPU))
    assert said["fix"] == "batch: 32 -> 16"


def test_what_may_be_memory(nodes):
    node = nodes["tune"]
    told = "the same command goes on; signal 9 often means out of memory: engine.workers: 1 -> 0, or "
    assert memory.perhaps(node.stage, node.cards, 1) == told + relief.told(node.stage, node.cards)
    node = nodes["report"]
    said = "the same command goes on; signal 9 often means out of memory"
    assert memory.perhaps(node.stage, node.cards, 1) == said
