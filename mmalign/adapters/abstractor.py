"""The C-Abstractor of Honeybee (arXiv 2312.06742): convolutions, pooling to any number of tokens, convolutions.

Letters as in mmalign.adapters; H x W = P, h x w = Q, M channels inside.
"""

from math import isqrt

import torch
from torch import Tensor, nn

from mmalign.adapters import Adapter
from mmalign.errors import CheckError

GROUP = 8  # channels a group of the 3 x 3 convolutions


class CAbstractor(Adapter):
    """`depth` residual blocks, adaptive average pooling to `tokens` tokens, `depth` blocks, a two-layer MLP.

    tokens: Q, a square number. width: M. depth: blocks before and after the pooling. The paper's blocks are RegNet's
    (arXiv 2003.13678) with squeeze-and-excitation, SiLU and layer norm over channels.
    """

    keeps_grid = False

    def __init__(
        self,
        patch_dim: int,
        llm_dim: int,
        grid: tuple[int, int],
        tokens: int = 144,
        width: int = 1024,
        depth: int = 3,
    ) -> None:
        super().__init__(patch_dim, llm_dim, grid)
        side = isqrt(max(0, tokens))
        if side < 1 or side * side != tokens:
            raise CheckError(f"tokens must be a square number, got {tokens}", at="args.tokens", fix="144, or 64")
        if width % GROUP:
            raise CheckError(f"width must be a multiple of {GROUP}, got {width}", at="args.width")
        self.side = side
        self.place_PC = nn.Parameter(torch.empty(grid[0] * grid[1], patch_dim))
        nn.init.trunc_normal_(self.place_PC, std=0.02)
        self.before = nn.Sequential(*[Block(width if n else patch_dim, width) for n in range(depth)])
        self.after = nn.Sequential(*[Block(width, width) for _ in range(depth)])
        inside = width if depth else patch_dim
        self.readout = nn.Sequential(nn.Linear(inside, llm_dim), nn.SiLU(), nn.Linear(llm_dim, llm_dim))

    @property
    def tokens(self) -> int:
        return self.side**2

    def forward(self, patches_BPC: Tensor) -> Tensor:
        map_BCP = (patches_BPC + self.place_PC).transpose(1, 2)
        map_BMHW = self.before(map_BCP.reshape(*map_BCP.shape[:2], *self.grid))
        map_BMhw = self.after(pooled(map_BMHW, self.side))
        visual_BQD: Tensor = self.readout(map_BMhw.flatten(2).transpose(1, 2))
        return visual_BQD


class Block(nn.Module):
    """A residual bottleneck: 1 x 1, grouped 3 x 3, squeeze-and-excitation, 1 x 1."""

    def __init__(self, come: int, go: int) -> None:
        super().__init__()
        self.narrow = nn.Sequential(nn.Conv2d(come, go, 1, bias=False), ChannelNorm(go), nn.SiLU())
        grouped = nn.Conv2d(go, go, 3, padding=1, groups=go // GROUP, bias=False)
        self.look = nn.Sequential(grouped, ChannelNorm(go), nn.SiLU())
        few = max(1, come // 4)
        self.excite = nn.Sequential(nn.Conv2d(go, few, 1), nn.ReLU(), nn.Conv2d(few, go, 1), nn.Sigmoid())
        self.wide = nn.Sequential(nn.Conv2d(go, go, 1, bias=False), ChannelNorm(go))
        short = [] if come == go else [nn.Conv2d(come, go, 1, bias=False), ChannelNorm(go)]
        self.short = nn.Sequential(*short)

    def forward(self, map_BMHW: Tensor) -> Tensor:
        seen_BMHW: Tensor = self.look(self.narrow(map_BMHW))
        seen_BMHW = seen_BMHW * self.excite(seen_BMHW.mean((2, 3), keepdim=True))
        return nn.functional.silu(self.wide(seen_BMHW) + self.short(map_BMHW))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map."""

    def forward(self, map_BMHW: Tensor) -> Tensor:
        return super().forward(map_BMHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def pooled(map_BMHW: Tensor, side: int) -> Tensor:
    """Adaptive average pooling to side x side, as two products: torch's own has no repeatable gradient on GPUs."""
    inside_hH, inside_wW = (_inside(size, side, map_BMHW.device) for size in map_BMHW.shape[2:])
    sum_BMhw = torch.einsum("hH,bmHW,wW->bmhw", inside_hH, map_BMHW.float(), inside_wW)
    mean_BMhw: Tensor = sum_BMhw / (inside_hH.sum(1)[:, None] * inside_wW.sum(1))
    return mean_BMhw.to(map_BMHW.dtype)


def _inside(come: int, go: int, device: torch.device) -> Tensor:
    """(go, come): 1 where a source lies in a target's window, floor(i come / go) to ceil((i + 1) come / go)."""
    target, source = torch.arange(go, device=device)[:, None], torch.arange(come, device=device)
    return ((source >= target * come // go) & (source < -(-(target + 1) * come // go))).float()
