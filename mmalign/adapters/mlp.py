"""Adapters that map every patch by itself: linear, MLP and identity."""

from itertools import pairwise

from torch import Tensor, nn

from mmalign.adapters import Adapter
from mmalign.errors import CheckError


class MLP(Adapter):
    """Linear layers with a GELU between each two.

    depth: how many; LLaVA-1.5 (arXiv 2310.03744) has two, one is linear.
    """

    def __init__(self, patch_dim: int, llm_dim: int, grid: tuple[int, int], depth: int = 2) -> None:
        super().__init__(patch_dim, llm_dim, grid)
        if depth < 1:
            raise CheckError(f"an MLP adapter needs at least one layer, got depth {depth}", at="args.depth")
        self.layers = mlp(patch_dim, *[llm_dim] * depth)

    def forward(self, patches_BPC: Tensor) -> Tensor:
        visual_BPD: Tensor = self.layers(patches_BPC)
        return visual_BPD


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers from each width to the next, with a GELU between each two."""
    layers: list[nn.Module] = []
    for come, go in pairwise(widths):
        layers += [nn.GELU(), nn.Linear(come, go)] if layers else [nn.Linear(come, go)]
    return nn.Sequential(*layers)


class Identity(Adapter):
    """The patches as they are; the encoder must have the language model's width."""

    def __init__(self, patch_dim: int, llm_dim: int, grid: tuple[int, int]) -> None:
        super().__init__(patch_dim, llm_dim, grid)
        if patch_dim != llm_dim:
            what = f"identity adapter: patches are {patch_dim} wide, the language model {llm_dim}"
            raise CheckError(what, fix="an adapter that maps widths, such as mlp2x-gelu")

    def forward(self, patches_BPC: Tensor) -> Tensor:
        return patches_BPC
