"""Training on a GPU through the real Engine, one process: steps, checkpoints, and every stage of the tiny recipe."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("deepspeed")
pytest.importorskip("omegaconf")

from mmalign.pipeline import task, worker
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.training import checkpoint
from tests.training.test_engine import equal, make, plain, train

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("bf16", 2e-2)])
def test_steps_are_those_of_a_plain_loop(device, zero, precision, bound):
    engine, optim = make(zero, precision)
    assert engine.device.type == device.type
    assert train(engine, optim, 0, 6) == pytest.approx(plain(6), rel=bound)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_goes_on_from_its_checkpoint_to_the_same_bits(device, tmp_path, zero, precision):
    engine, optim = make(zero, precision)
    train(engine, optim, 0, 3)
    checkpoint.save(tmp_path, 3, engine.state(), 0)
    expected = train(engine, optim, 3, 6)
    end = dict(engine.state())
    step, state = checkpoint.load(checkpoint.newest(tmp_path))
    fresh, optim = make(zero, precision)
    fresh.load_state(state, step)
    assert equal(dict(fresh.state()), state)
    assert train(fresh, optim, 3, 6) == expected
    assert equal(dict(fresh.state()), end)


def test_every_stage_of_the_tiny_recipe(device, tiny: Path):
    for node in graph.plan(compose.load(str(tiny)), Path("runs")):
        task.save(node)
        worker.run(node.folder, 0)
        assert json.loads((node.folder / "stage.json").read_text())
    lines = [path.read_text().splitlines() for path in Path("runs").glob("train-*/metrics.jsonl")]
    assert len(lines) == 2
    assert all(torch.tensor(json.loads(line)["loss"]).isfinite() for log in lines for line in log)
