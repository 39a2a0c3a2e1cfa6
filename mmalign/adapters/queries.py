"""Adapters whose learned queries gather the patches by attention: the Perceiver resampler and the Q-Former.

Letters as in mmalign.adapters; M width inside, S keys.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.adapters import Adapter
from mmalign.errors import CheckError


class _Queries(Adapter):
    """tokens: Q, the queries. width: M; None: that of the patches. heads must divide it. depth: layers."""

    keeps_grid: ClassVar[bool] = False

    def __init__(
        self,
        patch_dim: int,
        llm_dim: int,
        grid: tuple[int, int],
        tokens: int,
        width: int | None,
        depth: int,
        heads: int,
    ) -> None:
        super().__init__(patch_dim, llm_dim, grid)
        self.width = width or patch_dim
        for name, number in (("tokens", tokens), ("depth", depth)):
            if number < 1:
                raise CheckError(f"{name} must be at least 1, got {number}", at=f"args.{name}")
        if heads < 1 or self.width % heads:
            what = f"{heads} heads do not divide a width of {self.width}"
            raise CheckError(what, at="args.heads", fix="another number of heads, or `width:`")
        self.query_QM = nn.Parameter(torch.empty(tokens, self.width))
        nn.init.trunc_normal_(self.query_QM, std=0.02)
        self.out = nn.Linear(self.width, llm_dim)

    @property
    def tokens(self) -> int:
        return len(self.query_QM)


class Resampler(_Queries):
    """Flamingo's Perceiver resampler (arXiv 2204.14198): in every layer the latents attend to the patches and to
    themselves.

    heads: of each attention; they share its width.

    Its embeddings of time are for videos and left out. The paper gates the language model's layers, not these.
    """

    def __init__(
        self,
        patch_dim: int,
        llm_dim: int,
        grid: tuple[int, int],
        tokens: int = 64,
        width: int | None = None,
        depth: int = 6,
        heads: int = 16,
    ) -> None:
        super().__init__(patch_dim, llm_dim, grid, tokens, width, depth, heads)
        self.come = nn.Linear(patch_dim, self.width) if self.width != patch_dim else nn.Identity()
        self.layers = nn.ModuleList([ResamplerLayer(self.width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(self.width)

    def forward(self, patches_BPC: Tensor) -> Tensor:
        patches_BPM = self.come(patches_BPC)
        latent_BQM = self.query_QM.expand(len(patches_BPC), -1, -1)
        for layer in self.layers:
            latent_BQM = layer(latent_BQM, patches_BPM)
        visual_BQD: Tensor = self.out(self.norm(latent_BQM))
        return visual_BQD


class ResamplerLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_patches, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = Attention(width, width, heads, bias=False)
        up, down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.feed = nn.Sequential(nn.LayerNorm(width), up, SquaredReLU(), down)

    def forward(self, latent_BQM: Tensor, patches_BPM: Tensor) -> Tensor:
        normed_BQM = self.norm_latents(latent_BQM)
        both_BSM = torch.cat([self.norm_patches(patches_BPM), normed_BQM], dim=1)
        latent_BQM = latent_BQM + self.attend(normed_BQM, both_BSM)
        fed_BQM: Tensor = latent_BQM + self.feed(latent_BQM)
        return fed_BQM


class SquaredReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


class QFormer(_Queries):
    """Queries that attend to each other in every layer and to the patches in every second (BLIP-2, arXiv 2301.12597).

    every: how often the patches are seen, in layers, from the first on. heads: of each attention.

    The paper starts from BERT; this one from random weights, so it is smaller, and norms come before each step, which
    trains without a warm start.
    """

    def __init__(
        self,
        patch_dim: int,
        llm_dim: int,
        grid: tuple[int, int],
        tokens: int = 32,
        width: int = 768,
        depth: int = 6,
        heads: int = 12,
        every: int = 2,
    ) -> None:
        super().__init__(patch_dim, llm_dim, grid, tokens, width, depth, heads)
        if every < 1:
            raise CheckError(f"patches are seen in every n-th layer, n at least 1, got {every}", at="args.every")
        seen = [patch_dim if number % every == 0 else 0 for number in range(depth)]
        self.layers = nn.ModuleList([QFormerLayer(width, heads, patches) for patches in seen])
        self.norm = nn.LayerNorm(width)

    def forward(self, patches_BPC: Tensor) -> Tensor:
        query_BQM = self.query_QM.expand(len(patches_BPC), -1, -1)
        for layer in self.layers:
            query_BQM = layer(query_BQM, patches_BPC)
        visual_BQD: Tensor = self.out(self.norm(query_BQM))
        return visual_BQD


class QFormerLayer(nn.Module):
    """patches: their width, 0 where this layer does not look at them."""

    def __init__(self, width: int, heads: int, patches: int) -> None:
        super().__init__()
        self.norm_own, self.own = nn.LayerNorm(width), Attention(width, width, heads)
        self.norm_cross = nn.LayerNorm(width) if patches else None
        self.cross = Attention(width, patches, heads) if patches else None
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, query_BQM: Tensor, patches_BPC: Tensor) -> Tensor:
        normed_BQM = self.norm_own(query_BQM)
        query_BQM = query_BQM + self.own(normed_BQM, normed_BQM)
        if self.cross is not None and self.norm_cross is not None:
            query_BQM = query_BQM + self.cross(self.norm_cross(query_BQM), patches_BPC)
        fed_BQM: Tensor = query_BQM + self.feed(query_BQM)
        return fed_BQM


class Attention(nn.Module):
    """Multi-head attention of queries over keys of another width."""

    def __init__(self, width: int, keys: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.out = nn.Linear(width, width, bias=bias), nn.Linear(width, width, bias=bias)
        self.key, self.value = nn.Linear(keys, width, bias=bias), nn.Linear(keys, width, bias=bias)

    def forward(self, query_BQM: Tensor, key_BSM: Tensor) -> Tensor:
        q, k, v = map(self._split, (self.query(query_BQM), self.key(key_BSM), self.value(key_BSM)))
        seen_BHQm = F.scaled_dot_product_attention(q, k, v)
        seen_BQM: Tensor = self.out(seen_BHQm.transpose(1, 2).reshape(query_BQM.shape))
        return seen_BQM

    def _split(self, x_BSM: Tensor) -> Tensor:
        return x_BSM.reshape(*x_BSM.shape[:2], self.heads, -1).transpose(1, 2)
