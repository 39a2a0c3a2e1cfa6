"""Parameter groups, the schedule, and Muon beside AdamW."""

import math

import pytest
import torch
from torch import nn

from mmalign.errors import CheckError
from mmalign.plan.recipe import Optim
from mmalign.training.optim import MuonAdamW, factor, groups, optimizer


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision = nn.Linear(4, 4)
        self.adapter = nn.Linear(4, 6)
        self.llm = nn.ModuleDict({"embed_tokens": nn.Embedding(9, 6), "up": nn.Linear(6, 8)})


def test_each_part_has_its_rate_and_only_matrices_decay():
    optim = Optim(lr=1e-3, lr_vision=1e-5, lr_llm=1e-4, weight_decay=0.1)
    param_groups = groups(Parts().named_parameters(), optim)
    settings = {name: (g.lr, g.weight_decay) for g in param_groups for name in g.names}
    assert settings["vision.weight"] == (1e-5, 0.1)
    assert settings["vision.bias"] == (1e-5, 0.0)
    assert settings["adapter.weight"] == (1e-3, 0.1)
    assert settings["llm.up.bias"] == (1e-4, 0.0)


def test_frozen_parameters_are_in_no_group():
    parts = Parts()
    parts.vision.requires_grad_(False)
    assert not [n for g in groups(parts.named_parameters(), Optim(lr=1)) for n in g.names if n.startswith("vision")]


def test_a_rate_of_zero_is_a_rate():
    (group,) = groups([("vision.w", nn.Parameter(torch.ones(1)))], Optim(lr=1e-3, lr_vision=0.0))
    assert group.lr == 0


def test_a_0_dimensional_parameter_is_refused():
    with pytest.raises(CheckError, match="objectives.tau is a 0-dimensional"):
        groups([("objectives.tau", nn.Parameter(torch.tensor(1.0)))], Optim(lr=1))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_schedule_by_its_definition(schedule):
    optim, steps = Optim(lr=1.0, warmup=0.1, schedule=schedule), 50
    for step in range(steps):
        if step < 5:
            expected = (step + 1) / 5
        else:
            part = (step - 5) / 45
            expected = {"cosine": (1 + math.cos(math.pi * part)) / 2, "linear": 1 - part, "constant": 1.0}[schedule]
        assert factor(step, steps, optim) == pytest.approx(expected)
    assert factor(0, 1, Optim(lr=1.0)) == 1


def test_muon_takes_hidden_matrices_and_adamw_the_rest():
    parts, optim = Parts(), Optim(name="muon", lr=1e-3, lr_muon=2e-2)
    trained = groups(parts.named_parameters(), optim)
    assert {n for g in trained if g.muon for n in g.names} == {"vision.weight", "adapter.weight", "llm.up.weight"}
    assert all(g.lr == 2e-2 for g in trained if g.muon)
    torch.manual_seed(0)
    both = optimizer(trained, optim)
    assert isinstance(both, MuonAdamW)
    twin = Parts()
    twin.load_state_dict(parts.state_dict())
    twins = dict(twin.named_parameters())
    muon = torch.optim.Muon([twins[n] for g in trained if g.muon for n in g.names], lr=1e-2, weight_decay=0.0)
    adamw = torch.optim.AdamW(
        [twins[n] for g in trained if not g.muon for n in g.names], lr=1e-2, weight_decay=0.0, fused=True
    )
    for settings in both.param_groups:
        settings["lr"] = 1e-2
    for step in range(3):
        for net in (parts, twin):
            g = torch.Generator().manual_seed(step)
            for p in net.parameters():
                p.grad = torch.randn(p.shape, generator=g)
        both.step()
        muon.step()
        adamw.step()
    assert all(torch.equal(p, twins[n]) for n, p in parts.named_parameters())


def test_adamw_in_one_kernel_steps_as_the_plain_one():
    """Decayed matrices of odd shapes and biases, 20 steps: equal to 1e-7 of the weights, and so are both moments."""
    nets = [nn.ModuleDict({"adapter": nn.Linear(7, 31), "llm": nn.Linear(31, 3)}) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    optim = Optim(lr=1e-3, weight_decay=0.1, betas=[0.9, 0.95])
    ours = optimizer(groups(nets[0].named_parameters(), optim), optim)
    plain = torch.optim.AdamW([g.settings() for g in groups(nets[1].named_parameters(), optim)], betas=(0.9, 0.95))
    assert all(group["fused"] for group in ours.param_groups)
    assert not any(group["fused"] for group in plain.param_groups)
    for step in range(20):
        for net, adam in zip(nets, (ours, plain), strict=True):
            g = torch.Generator().manual_seed(step)
            for p in net.parameters():
                p.grad = torch.randn(p.shape, generator=g)
            for group in adam.param_groups:
                group["lr"] = 1e-3
            adam.step()
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.allclose(one, other, rtol=1e-7, atol=1e-7)
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.allclose(ours.state[one][key], plain.state[other][key], rtol=1e-6, atol=1e-7)
