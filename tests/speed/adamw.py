"""A step of AdamW as training makes it, in one kernel a tensor, against torch's own by default: 12 million fp32 weights
in the matrices and biases of an adapter."""

from itertools import pairwise

import torch
from torch import nn

from mmalign.plan.recipe import Optim
from mmalign.training.optim import groups, optimizer

from . import Pairs, in_turn
from ._work import clock

TARGET = 0.5
TIMES = 15
WIDTHS = (1024, 3072, 3072)


def measure() -> Pairs:
    torch.set_num_threads(1)
    optim = Optim(lr=1e-3, weight_decay=0.1)
    ours, plain = _net(), _net()
    fused = optimizer(groups(ours.named_parameters(), optim), optim)
    theirs = torch.optim.AdamW([group.settings() for group in groups(plain.named_parameters(), optim)])
    return in_turn(fused.step, theirs.step, TIMES, clock)


def _net() -> nn.Module:
    torch.manual_seed(0)
    pairs = pairwise(WIDTHS)
    net = nn.ModuleDict({"adapter": nn.Sequential(*(nn.Linear(inside, out) for inside, out in pairs))})
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    return net.to("cuda" if torch.cuda.is_available() else "cpu")
