"""Every adapter of the registry keeps the contract, on the grids there are; its card tells the truth."""

import inspect
from functools import partial

import pytest
import torch
from torch import nn

from mmalign.adapters import Adapter
from mmalign.errors import CheckError
from mmalign.plan import building
from mmalign.plan.cards import Card, Registry
from mmalign.plan.estimate import adapter_parameters
from mmalign.testing import check_adapter

CARDS = {card.name: card for card in Registry().every("adapters")}
SMALL = {"width": 32, "depth": 2, "heads": 4, "tokens": 4}  # in place of a card's settings, where it has them
TOKENS = {  # of 24 x 24 patches; the others keep them all
    "average-pool": 144,
    "c-abstractor": 144,
    "ldp": 144,
    "ldp-v2": 144,
    "perceiver-resampler": 64,
    "pixel-shuffle": 144,
    "q-former": 32,
}
UNCOUNTED = {"c-abstractor"}  # a shortcut is there for some widths only


def make(card: Card, patch_dim: int, llm_dim: int, grid: tuple[int, int]) -> Adapter:
    args = {name: SMALL.get(name, value) for name, value in card.args.items()}
    return building.target(card)(patch_dim, llm_dim, grid, **args)


def width(card: Card) -> int:
    return 32 if card.facts.get("same_width") else 48


@pytest.mark.parametrize("grid", [(6, 4), (5, 3), (27, 27)])
@pytest.mark.parametrize("name", CARDS)
def test_contract(name: str, grid: tuple[int, int]):
    card = CARDS[name]
    if (setting := card.facts.get("divides")) and any(side % card.args[setting] for side in grid):
        with pytest.raises(CheckError, match=f"a grid of {grid[0]} x {grid[1]} patches has no squares"):
            make(card, 32, 48, grid)
        return
    check_adapter(partial(make, card), 32, width(card), grid)


@pytest.mark.parametrize("name", CARDS)
def test_facts(name: str):
    card = CARDS[name]
    target = building.target(card)
    assert card.facts["keeps_grid"] == target.keeps_grid
    assert set(card.args) <= set(inspect.signature(target).parameters)
    assert card.paper.startswith("https://arxiv.org/abs/") or name == "identity"
    if (setting := card.facts.get("tokens")) is not None:  # the argument that says how many
        assert building.build(card, patch_dim=64, llm_dim=48, grid=(6, 4)).tokens == card.args[setting]


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize(("patch", "dim"), [(1024, 4096), (3072, 2048)])
def test_the_card_itself_builds_at_real_sizes(name: str, patch: int, dim: int):
    """CLIP-L/336 under an 8B model and S2 under a 2B one, weights not allocated; a plan knows how many there are."""
    card = CARDS[name]
    dim = patch if card.facts.get("same_width") else dim
    with torch.device("meta"):
        made = building.build(card, patch_dim=patch, llm_dim=dim, grid=(24, 24))
    assert made.tokens == TOKENS.get(name, 576)
    told = adapter_parameters(card, patch, dim)
    assert told == (None if name in UNCOUNTED else sum(p.numel() for p in made.parameters()))


def test_ldp_is_as_large_as_its_paper_says():
    """MobileVLM V2's table of projectors: 18.94 M under MobileLLaMA 1.4B, and 6.32 M of its own (arXiv 2402.03766)."""
    told = {name: adapter_parameters(CARDS[name], 1024, 2048) / 1e6 for name in ("ldp", "ldp-v2")}
    assert {name: round(size, 2) for name, size in told.items()} == {"ldp": 18.94, "ldp-v2": 6.32}


class Broken(Adapter):
    """Keeps the contract; each subclass breaks one clause of it."""

    def __init__(self, patch_dim: int, llm_dim: int, grid: tuple[int, int]) -> None:
        super().__init__(patch_dim, llm_dim, grid)
        self.layer = nn.Linear(patch_dim, llm_dim)

    def forward(self, patches_BPC: torch.Tensor) -> torch.Tensor:
        return self.layer(patches_BPC)


class Scalar(Broken):
    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        self.gate = nn.Parameter(torch.tensor(1.0))


class Short(Broken):
    def forward(self, patches_BPC: torch.Tensor) -> torch.Tensor:
        return super().forward(patches_BPC)[:, 1:]


class Upcast(Broken):
    def forward(self, patches_BPC: torch.Tensor) -> torch.Tensor:
        return super().forward(patches_BPC).float()


class Infinite(Broken):
    def forward(self, patches_BPC: torch.Tensor) -> torch.Tensor:
        return super().forward(patches_BPC) / 0


class Random(Broken):
    def forward(self, patches_BPC: torch.Tensor) -> torch.Tensor:
        return super().forward(patches_BPC + torch.rand_like(patches_BPC))


class Mixed(Broken):
    def forward(self, patches_BPC: torch.Tensor) -> torch.Tensor:
        return super().forward(patches_BPC - patches_BPC.mean(0))


class Dead(Broken):
    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        self.spare = nn.Linear(2, 2)


class Loose(Broken):
    def forward(self, patches_BPC: torch.Tensor) -> torch.Tensor:
        layer = next(module for module in self.modules() if isinstance(module, torch.nn.Linear))
        return torch.nn.functional.linear(patches_BPC, layer.weight, layer.bias)


class Detached(Broken):
    def forward(self, patches_BPC: torch.Tensor) -> torch.Tensor:
        return super().forward(patches_BPC.detach())


class Blind(Broken):
    def forward(self, patches_BPC: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.cat([patches_BPC[:, 1:], patches_BPC[:, 1:2]], 1))


class Forgetful(Broken):
    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        self.shift = torch.randn(self.llm_dim)

    def forward(self, patches_BPC: torch.Tensor) -> torch.Tensor:
        return super().forward(patches_BPC) + self.shift.to(patches_BPC.dtype)


class Turned(Broken):
    def forward(self, patches_BPC: torch.Tensor) -> torch.Tensor:
        return super().forward(patches_BPC.flip(1))


class Fewer(Broken):
    tokens = 1

    def forward(self, patches_BPC: torch.Tensor) -> torch.Tensor:
        return super().forward(patches_BPC).mean(1, keepdim=True)


BROKEN = {
    Scalar: "parameters without a dimension, .*: gate",
    Short: r"the output is \(3, 23, 48\), declared was \(3, 24, 48\)",
    Upcast: "the output is torch.float32, the weights are torch.bfloat16",
    Infinite: "the output is not finite in torch.float32",
    Random: "the same input gives another output in eval mode",
    Mixed: "a sample's output depends on the others in its batch",
    Dead: "no gradient reaches spare.weight, spare.bias",
    Loose: r"forward\(\) uses a weight outside of its module's forward",
    Detached: "no gradient reaches the patches",
    Blind: "1 patches change no token",
    Forgetful: r"state_dict\(\) does not hold everything it needs",
    Turned: "keeps_grid, but patch 0 changes token 23",
    Fewer: "keeps_grid, but 1 tokens of 24 patches",
}


def test_the_unbroken_adapter_passes():
    check_adapter(Broken)


@pytest.mark.parametrize("adapter", BROKEN, ids=lambda adapter: adapter.__name__)
def test_what_breaks_the_contract_is_said(adapter: type[Adapter]):
    with pytest.raises(AssertionError, match=BROKEN[adapter]):
        check_adapter(adapter)
