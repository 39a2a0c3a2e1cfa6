"""A training step with lm + sea against one with lm alone: labels from a store, and beside it labels made in the step.

The model of `basic_step`, the adapter learning; 41,242 words of which each patch has 10. Online, the words nearest to
the patches that are drawn are found among all of them (768 wide): on a CPU that is a far larger share of this small
model's step, a tenth by its operations, than of a 7B's, of which it is 0.2 %.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign.labels import LabelSource
from mmalign.labels.rank import Bank
from mmalign.objectives import Objective, Words
from mmalign.objectives.lm import NextToken
from mmalign.objectives.sea import SEA
from mmalign.vlm.supervised import PassLabels

from . import Pairs, in_turn
from ._work import clock
from .basic_step import GRID, probe
from .topn import KEEP, WIDTH, WORDS, cone

TARGET = 1.03
ONLINE = 1.15
TIMES = 7


class Nearest(LabelSource):
    """The nearest words to patches whose place in the joint space is there already."""

    def __init__(self, device: torch.device) -> None:
        self.bank = Bank.of(cone(WORDS).to(device))

    def label(self, dense_NJ: Tensor) -> tuple[Tensor, Tensor]:
        return self.bank.best(torch.nn.functional.normalize(dense_NJ, dim=-1), KEEP)


def measure() -> dict[str, Pairs]:
    torch.set_num_threads(1)
    alone, both = _step({"lm": NextToken()}), {"lm": NextToken(), "sea": SEA()}
    found = {"step lm + sea / lm": in_turn(_step(both, "store"), alone, TIMES, clock)}
    found["step lm + sea / lm, online"] = in_turn(_step(both, "online"), alone, TIMES, clock)
    found["step lm + sea / lm, online"].target = ONLINE
    return found


def _step(objectives: dict[str, Objective], labels: str = "") -> Callable[[], None]:
    """Forward and backward, the gradients thrown away. labels: store, online, or none."""
    model, batch = probe(objectives)
    device = batch.ids_RS.device
    if labels:
        pieces_WT = torch.randint(3, 300, (WORDS, 3), device=device)
        source = Nearest(device) if labels == "online" else None
        model._labels = (PassLabels(Words([""] * WORDS, pieces_WT, model.vlm.llm.embed), source),)
    if labels == "store":
        shape = (batch.images, GRID[0] * GRID[1], KEEP)
        batch.words_BPK, batch.scores_BPK = torch.randint(WORDS, shape, device=device), torch.rand(shape, device=device)
    if labels == "online":
        dense_BPJ = torch.randn(batch.images, GRID[0] * GRID[1], WIDTH, device=device)
        model.vlm.vision.both = lambda pixels_B3SS: (model.vlm.vision.patches_BPC, dense_BPJ)

    def step() -> None:
        terms, _ = model(batch)
        sum(terms.values()).backward()
        model.zero_grad()

    return step
