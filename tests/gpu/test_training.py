"""Training on a GPU through the real Engine, one process: steps, checkpoints, and every stage of the tiny recipe."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytest.importorskip("deepspeed")
pytest.importorskip("omegaconf")

from mmalign.llms.causal import CausalLM
from mmalign.pipeline import task, worker
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.training import batches, checkpoint
from mmalign.training.later import Later
from tests import parts
from tests.training.test_engine import equal, make, plain, train
from tests.training.test_loop import Pass, Still, fit, passes

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


def on(device, one: Pass) -> Pass:
    """A pass of page-locked memory that goes to the device while that works."""
    pinned = batches.pinned(one)
    pinned.to = lambda where: replace(one, x=pinned.x.to(where, non_blocking=True))  # type: ignore[method-assign]
    return pinned


def test_the_loop_hands_one_step_after_the_other_to_the_device(device, tmp_path):
    """Between two lines of the log nothing waits; torch itself raises an error where something would."""
    if device.type != "cuda":
        pytest.skip("a CPU is never waited for")
    _, run = fit(tmp_path, steps=6, log_every=100, make=lambda step: [on(device, one) for one in passes(step)])
    run.engine = Still()
    run.engine.device = device
    run.engine.net.to(device)

    def watch(done: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if 1 <= done < 5 else "default")

    run.watchers = [watch]
    try:
        run.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_number_on_its_way(device):
    values = [Later(torch.full((), float(n), device=device) * 2) for n in range(5)]
    assert [float(one) for one in values] == [0, 2, 4, 6, 8]
    assert not values[0]
    assert values[1]


@pytest.mark.parametrize("kind", ["flash", "eager"])
def test_kernels_of_attention_agree(device, tmp_path, kind):
    if kind == "flash" and (device.type != "cuda" or find_spec("flash_attn") is None):
        pytest.skip("needs a GPU and flash-attn")
    llm = CausalLM(str(parts.llm("llama", tmp_path))).to(device, torch.bfloat16).eval()
    torch.manual_seed(0)
    embeds = torch.randn(2, 40, llm.dim, device=device, dtype=torch.bfloat16)
    mask = torch.ones(2, 40, dtype=torch.long, device=device)
    mask[1, 30:] = 0
    with torch.no_grad():
        before = llm(embeds, mask)[mask > 0].float()
        llm.attend(kind)
        after = llm(embeds, mask)[mask > 0].float()
    assert (after - before).abs().max() < 0.05 * before.abs().max()
