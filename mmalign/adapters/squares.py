"""Adapters that make one visual token of each square of neighbouring patches: pooled, side by side, or convolved.

Letters as in mmalign.adapters; F patches of a square.
"""

import torch
from torch import Tensor, nn

from mmalign.adapters import Adapter
from mmalign.adapters.abstractor import ChannelNorm
from mmalign.adapters.mlp import mlp
from mmalign.errors import CheckError


class _Squares(Adapter):
    """factor: patches along a square's side; it must divide the grid."""

    keeps_grid = False

    def __init__(self, patch_dim: int, llm_dim: int, grid: tuple[int, int], factor: int = 2) -> None:
        super().__init__(patch_dim, llm_dim, grid)
        if factor < 1 or any(side % factor for side in grid):
            what = f"a grid of {grid[0]} x {grid[1]} patches has no squares of {factor} x {factor}"
            raise CheckError(what, at="args.factor", fix="a factor that divides both sides, or another encoder")
        self.factor = factor

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1] // self.factor**2

    def squares(self, patches_BPC: Tensor) -> Tensor:
        """squares_BQFC, squares and the patches inside each row by row."""
        (rows, columns), factor, wide = self.grid, self.factor, patches_BPC.shape[-1]
        cut = patches_BPC.reshape(-1, rows // factor, factor, columns // factor, factor, wide)
        return cut.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.tokens, factor**2, wide)


class AveragePool(_Squares):
    """The mean of each square, then a two-layer MLP (DeCo, arXiv 2405.20985)."""

    def __init__(self, patch_dim: int, llm_dim: int, grid: tuple[int, int], factor: int = 2) -> None:
        super().__init__(patch_dim, llm_dim, grid, factor)
        self.layers = mlp(patch_dim, llm_dim, llm_dim)

    def forward(self, patches_BPC: Tensor) -> Tensor:
        visual_BQD: Tensor = self.layers(self.squares(patches_BPC).mean(2))
        return visual_BQD


class PixelShuffle(_Squares):
    """The patches of each square side by side, normed, then a two-layer MLP (InternVL 1.5, arXiv 2404.16821)."""

    def __init__(self, patch_dim: int, llm_dim: int, grid: tuple[int, int], factor: int = 2) -> None:
        super().__init__(patch_dim, llm_dim, grid, factor)
        self.norm = nn.LayerNorm(patch_dim * factor**2)
        self.layers = mlp(patch_dim * factor**2, llm_dim, llm_dim)

    def forward(self, patches_BPC: Tensor) -> Tensor:
        visual_BQD: Tensor = self.layers(self.norm(torch.flatten(self.squares(patches_BPC), 2)))
        return visual_BQD


class LDP(_Squares):
    """A two-layer MLP and two depthwise blocks, the second of which steps from square to square (MobileVLM,
    arXiv 2312.16886).

    The paper draws a block as depthwise and pointwise convolution with layer norms between. The published code, which
    its weights need, is followed: the block is MobileNetV3's (arXiv 1905.02244), so squeeze-and-excitation and
    hard swish come with it. A block that keeps the map is residual.
    """

    def __init__(self, patch_dim: int, llm_dim: int, grid: tuple[int, int], factor: int = 2) -> None:
        super().__init__(patch_dim, llm_dim, grid, factor)
        self.layers = mlp(patch_dim, llm_dim, llm_dim)
        self.keep, self.step = DepthwiseBlock(llm_dim), DepthwiseBlock(llm_dim, factor)

    def forward(self, patches_BPC: Tensor) -> Tensor:
        map_BDP = self.layers(patches_BPC).transpose(1, 2)
        map_BDHW = map_BDP.reshape(*map_BDP.shape[:2], *self.grid)
        map_BDHW = map_BDHW + self.keep(map_BDHW)
        visual_BQD: Tensor = self.step(map_BDHW).flatten(2).transpose(1, 2)
        return visual_BQD


class DepthwiseBlock(nn.Sequential):
    """Depthwise 3 x 3, squeeze-and-excitation, pointwise; channels stay. step: patches from one token to the next."""

    def __init__(self, wide: int, step: int = 1) -> None:
        depthwise = nn.Conv2d(wide, wide, 3, step, padding=1, groups=wide, bias=False)
        pointwise = nn.Conv2d(wide, wide, 1, bias=False)
        super().__init__(
            depthwise, ChannelNorm(wide), nn.Hardswish(), SqueezeExcitation(wide), pointwise, ChannelNorm(wide)
        )


class SqueezeExcitation(nn.Module):
    """Each channel of a map times a factor from 0 to 1, made of the means of all channels (arXiv 1709.01507).

    Inside are a quarter of the channels, in eights as in MobileNets: rounded, but not to below nine tenths.
    """

    def __init__(self, wide: int) -> None:
        super().__init__()
        quarter = wide // 4
        few = max(8, (quarter + 4) // 8 * 8)
        few += 8 * (few < 0.9 * quarter)
        self.scale = nn.Sequential(nn.Conv2d(wide, few, 1), nn.ReLU(), nn.Conv2d(few, wide, 1), nn.Hardsigmoid())

    def forward(self, map_BDHW: Tensor) -> Tensor:
        scaled_BDHW: Tensor = map_BDHW * self.scale(map_BDHW.mean((2, 3), keepdim=True))
        return scaled_BDHW


class LDPv2(_Squares):
    """A two-layer MLP, the mean of each square, and a depthwise convolution that tells tokens where they are
    (MobileVLM V2, arXiv 2402.03766).
    """

    def __init__(self, patch_dim: int, llm_dim: int, grid: tuple[int, int], factor: int = 2) -> None:
        super().__init__(patch_dim, llm_dim, grid, factor)
        self.layers = mlp(patch_dim, llm_dim, llm_dim)
        self.place = nn.Conv2d(llm_dim, llm_dim, 3, padding=1, groups=llm_dim)

    def forward(self, patches_BPC: Tensor) -> Tensor:
        mean_BQD = self.squares(self.layers(patches_BPC)).mean(2)
        rows, columns = (side // self.factor for side in self.grid)
        map_BDhw = mean_BQD.transpose(1, 2).reshape(len(mean_BQD), -1, rows, columns)
        visual_BQD: Tensor = mean_BQD + self.place(map_BDhw).flatten(2).transpose(1, 2)
        return visual_BQD
