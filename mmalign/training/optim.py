"""The optimizer of a recipe: parameter groups by part, and the learning rate at every step."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmalign.errors import CheckError
from mmalign.plan.recipe import Optim
from mmalign.vlm.supervised import part_of


@dataclass
class ParamGroup:
    """Parameters that share a learning rate and a weight decay."""

    names: list[str]
    params: list[nn.Parameter]
    lr: float  # at the peak of the schedule
    weight_decay: float
    muon: bool = False

    def settings(self) -> dict[str, Any]:
        """As a torch optimizer takes it; the rate of every step is set by the loop."""
        return {"params": self.params, "lr": 0.0, "weight_decay": self.weight_decay}


def groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], optim: Optim, known: Mapping[int, str] | None = None
) -> list[ParamGroup]:
    """Trained parameters by part of the model, decayed ones (matrices) apart from the rest.

    known: names by the id of a parameter, where its own does not tell its part and what it is. CheckError for a trained
    parameter without dimensions.
    """
    by_kind: dict[tuple[str, bool, bool], ParamGroup] = {}  # (part, is a matrix, muon)
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        if parameter.dim() == 0:
            fix = "give it the shape [1]: DeepSpeed partitions no 0-dimensional tensor"
            raise CheckError(f"the parameter {name} is a 0-dimensional tensor", fix=fix)
        full = (known or {}).get(id(parameter), name)
        part, matrix = part_of(full), parameter.dim() > 1
        muon = optim.name == "muon" and parameter.dim() == 2 and not _is_table(full)
        lr = getattr(optim, f"lr_{part}", None)
        lr = optim.lr if lr is None else lr
        if muon and optim.lr_muon is not None:
            lr = optim.lr_muon
        decay = optim.weight_decay if matrix else 0.0
        group = by_kind.setdefault((part, matrix, muon), ParamGroup([], [], lr, decay, muon))
        group.names.append(name)
        group.params.append(parameter)
    return list(by_kind.values())


def _is_table(name: str) -> bool:
    """Embeddings, heads and projections into a joint space are no hidden matrices: AdamW trains them under muon."""
    return any(word in name for word in ("embed", "lm_head", "projection"))


def optimizer(param_groups: Sequence[ParamGroup], optim: Optim) -> torch.optim.Optimizer:
    """AdamW, in one kernel a tensor (on CPUs and GPUs; but for the last bits it steps as the plain one does); for
    groups marked `muon`, Muon beside it. Every rate is 0 until the loop sets it."""
    betas = (optim.betas[0], optim.betas[1])
    adamw = [group.settings() for group in param_groups if not group.muon]
    muon = [group.settings() for group in param_groups if group.muon]
    return MuonAdamW(muon, adamw, betas) if muon else torch.optim.AdamW(adamw, betas=betas, fused=True)


class MuonAdamW(torch.optim.Optimizer):
    """torch.optim.Muon for some groups and AdamW for the others, as one optimizer with one state."""

    def __init__(self, muon: list[dict[str, Any]], adamw: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        self.inner: list[torch.optim.Optimizer] = [torch.optim.Muon(muon, lr=0.0)]
        if adamw:
            self.inner.append(torch.optim.AdamW(adamw, betas=betas, fused=True))
        super().__init__([group for inner in self.inner for group in inner.param_groups], {})
        for inner in self.inner:
            inner.state = self.state
        start = 0  # the inner optimizers look at our groups, so a rate set here reaches them
        for inner in self.inner:
            inner.param_groups = self.param_groups[start : start + len(inner.param_groups)]
            start += len(inner.param_groups)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure else None
        for inner in self.inner:
            inner.step()
        return loss


def factor(step: int, steps: int, optim: Optim) -> float:
    """What the peak rate is multiplied by at a step (0-based): linear warm-up, then the schedule down to 0."""
    warmup_steps = math.ceil(optim.warmup * steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if optim.schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress)) if optim.schedule == "cosine" else 1 - progress
