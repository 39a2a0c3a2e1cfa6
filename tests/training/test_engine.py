"""DeepSpeed under the loop: every ZeRO stage, precision and number of processes steps alike, and resumes exactly."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from mmalign.plan.recipe import EngineSettings as Settings
from mmalign.plan.recipe import Optim
from mmalign.training.engine import Engine, connect, world
from mmalign.training.optim import factor, groups
from tests import ports

PASSES = 4  # a step, over all ranks


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.adapter = nn.Sequential(nn.Linear(8, 17), nn.Tanh(), nn.Linear(17, 4))
        self.objectives = nn.ParameterDict({"scale": nn.Parameter(torch.ones(1))})

    def forward(self, x, y):
        out = self.objectives["scale"] * self.adapter(self.frozen(x.to(self.frozen.weight.dtype)))
        return nn.functional.mse_loss(out.float(), y)


def make(zero, precision, name="adamw"):
    net = Net()
    optim = Optim(name=name, lr=1e-2, weight_decay=0.1)
    param_groups = groups(net.named_parameters(), optim)
    return Engine(net, param_groups, optim, Settings(zero=zero), precision, 2, PASSES // world()[1]), optim


def train(engine, optim, start, stop):
    """The losses of steps start .. stop-1: means over all passes."""
    rank, ranks = world()
    trace = []
    for step in range(start, stop):
        g = torch.Generator().manual_seed(step)
        x, y = torch.randn(PASSES, 2, 8, generator=g), torch.randn(PASSES, 2, 4, generator=g)
        total, passes = torch.zeros(1, device=engine.device), range(rank, PASSES, ranks)
        for number in passes:
            loss = engine(x[number].to(engine.device), y[number].to(engine.device))
            engine.backward(loss)
            engine.step(factor(step, 10, optim), last=number == passes[-1])
            total += loss.detach().float() / PASSES
        if ranks > 1:
            torch.distributed.all_reduce(total)
        trace.append(total.item())
    return trace


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def plain(steps):
    """The same training in plain PyTorch: what every engine has to reproduce."""
    net, optim = Net(), Optim(lr=1e-2, weight_decay=0.1)
    param_groups = groups(net.named_parameters(), optim)
    adam = torch.optim.AdamW([g.settings() for g in param_groups], betas=(0.9, 0.999))
    trace = []
    for step in range(steps):
        g = torch.Generator().manual_seed(step)
        x, y = torch.randn(PASSES, 2, 8, generator=g), torch.randn(PASSES, 2, 4, generator=g)
        loss = sum(net(x[n], y[n]) for n in range(PASSES)) / PASSES
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in param_groups for p in g.params], 1.0)
        for group, settings in zip(param_groups, adam.param_groups, strict=True):
            settings["lr"] = group.lr * factor(step, 10, optim)
        adam.step()
        adam.zero_grad()
        trace.append(loss.item())
    return trace


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_fp32_equals_a_plain_loop(zero):
    assert train(*make(zero, "fp32"), 0, 6) == pytest.approx(plain(6), rel=1e-5)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_bf16_stays_near_it(zero):
    assert train(*make(zero, "bf16"), 0, 6) == pytest.approx(plain(6), rel=2e-2)


@pytest.mark.parametrize(
    ("zero", "precision", "name", "then"),
    [(z, p, "adamw", z) for z in range(4) for p in ("fp32", "bf16")]
    + [(0, "fp32", "muon", 0), (0, "fp32", "adamw", 3), (3, "fp32", "adamw", 1), (2, "bf16", "adamw", 1)],
)
def test_resume_is_exact_and_may_change_the_zero_stage(zero, precision, name, then):
    engine, optim = make(zero, precision, name)
    train(engine, optim, 0, 3)
    saved = {k: v.clone() for k, v in engine.state()}
    expected = train(engine, optim, 3, 6)
    end = dict(engine.state())
    fresh, optim = make(then, precision, name)
    fresh.load_state(saved, 3)
    assert equal(dict(fresh.state()), saved)
    resumed = train(fresh, optim, 3, 6)
    if then == zero:
        assert resumed == expected
        assert equal(dict(fresh.state()), end)
    else:
        assert resumed == pytest.approx(expected, rel=1e-5 if precision == "fp32" else 1e-2)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_state_stays_as_it_is_when_training_goes_on_and_takes_the_bytes_it_says(zero, precision):
    engine, optim = make(zero, precision)
    train(engine, optim, 0, 2)
    state = dict(engine.state())
    before = {name: value.clone() for name, value in state.items()}
    train(engine, optim, 2, 4)
    assert equal(state, before)
    assert not equal(dict(engine.state()), before)
    assert sum(value.nbytes for value in state.values()) == engine.state_bytes


def test_the_state_is_whole_and_by_name():
    engine, optim = make(2, "bf16")
    train(engine, optim, 0, 2)
    state = dict(engine.state())
    names = {"adapter.0.weight", "adapter.0.bias", "adapter.2.weight", "adapter.2.bias", "objectives.scale"}
    assert set(state) == {f"{n}{k}" for n in names for k in ("", "/exp_avg", "/exp_avg_sq")}
    assert state["adapter.0.weight"].shape == (17, 8)
    assert all(v.dtype == torch.float32 for v in state.values())


@pytest.mark.parametrize("zero", [0, 3])
def test_weights_of_a_part_are_complete(zero):
    engine, optim = make(zero, "fp32")
    train(engine, optim, 0, 2)
    state = dict(engine.state())
    adapter = {k[8:]: v for k, v in state.items() if k.startswith("adapter.") and "/" not in k}
    assert equal(engine.weights("adapter"), adapter)
    assert torch.equal(engine.weights("frozen")["weight"], Net().frozen.weight)


def _ranks(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    for zero in range(4):
        engine, optim = make(zero, "fp32")
        trace = train(engine, optim, 0, 3)
        state = {k: v.clone() for k, v in engine.state()}
        trace += train(engine, optim, 3, 6)
        if not rank:
            torch.save({"trace": trace, "state": state}, f"{folder}/{zero}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one_and_one_goes_on_with_their_checkpoint(tmp_path: Path):
    mp.spawn(_ranks, (ports.free(), str(tmp_path)), nprocs=2)
    expected = plain(6)
    for zero in range(4):
        two = torch.load(tmp_path / f"{zero}.pt", weights_only=True)
        assert two["trace"] == pytest.approx(expected, rel=1e-5)
        engine, optim = make(0, "fp32")
        engine.load_state(two["state"], 3)
        assert train(engine, optim, 3, 6) == pytest.approx(expected[3:], rel=1e-5)


def test_the_slowest_rank_is_waited_for(monkeypatch):
    """Longer than the 10 minutes of NCCL and the 30 of gloo: one rank may write, label or ask while the others wait."""
    options = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **more: options.update(more))
    connect()
    assert options["timeout"] > timedelta(minutes=30)
