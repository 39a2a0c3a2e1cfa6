"""A lens for each layer of a language model: an affine map from its hidden states back to its input embeddings.

Behind the first layers hidden states need not lie where the input embeddings lie, though they still say which word
they came from. Then no embedding is near to them, whatever they mean, and one looks through the lens first. It is
fitted on words, in the place of an image's tokens, and told nothing of images.

Letters: N tokens, D width of the language model, E = D + 1.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmalign.llms.rows import wide
from mmalign.vlm import control
from mmalign.vlm.kept import kept
from mmalign.vlm.vocabulary import word_tokens

if TYPE_CHECKING:
    from mmalign.vlm.model import VLM

TOKENS = 1 << 14  # of random lists of words; and of texts, at most
RIDGE = 1e-4  # of the mean variance of a normalised state's numbers
TINY = 1e-12  # below every mean square: a state of zeros stays one
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Lens:
    """map_ED of each layer, E = D + 1: W above b of x W + b, x a hidden state over the root of its mean square.

    In fp32, on the device of the model. Layer 0 has none: visual tokens are where the embeddings are.
    """

    maps: Mapping[int, Tensor]

    def __call__(self, layer: int, hidden: Tensor) -> Tensor:
        """The input embeddings that hidden states (..., D) of a layer speak of: (..., D), fp32 (fp64 from fp64)."""
        if not layer:
            return wide(hidden)
        x = normalised(hidden)
        map_ED = self.maps[layer].to(x)
        return x @ map_ED[:-1] + map_ED[-1]


def normalised(hidden: Tensor) -> Tensor:
    """Hidden states over the root of their mean square, fp32 (fp64 from fp64)."""
    x = wide(hidden)
    return x * (x.square().mean(-1, keepdim=True) + TINY).rsqrt()


class Ridge:
    """Ridge regression from x to y, both N x D, that may come in any number of pieces.

    Minimises sum_n |x_n W + b - y_n|^2 + N r v |W|^2: r the ridge, v the mean variance of x's D numbers, so that
    neither their unit nor N matters; b is not shrunk. Inputs are fp32; sums are fp64, and all that is held:
    [x 1]^T [x 1 y], 16 D^2 bytes.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.dim = dim
        self.sums = torch.zeros(dim + 1, 2 * dim + 1, dtype=torch.float64, device=device)

    def add(self, x_ND: Tensor, y_ND: Tensor) -> None:
        one_N1 = torch.ones(len(x_ND), 1, dtype=torch.float64, device=self.sums.device)
        left_NE = torch.cat([x_ND.to(one_N1), one_N1], 1)
        self.sums += left_NE.T @ torch.cat([left_NE, y_ND.to(one_N1)], 1)

    def solve(self, ridge: float) -> Tensor:
        """map_ED: W above b, fp64. Of nothing, or of x that never change: W is 0, b the mean of y."""
        dim, means = self.dim, self.sums / self.sums[-1, self.dim].clamp(min=1)
        x_D, y_D = means[-1, :dim], means[-1, dim + 1 :]
        xx_DD = means[:-1, :dim] - x_D[:, None] * x_D
        xy_DD = means[:-1, dim + 1 :] - x_D[:, None] * y_D
        xx_DD.diagonal().add_(max(ridge * float(xx_DD.diagonal().mean()), TINY))
        weight_DD = torch.cholesky_solve(xy_DD, torch.linalg.cholesky(xx_DD))
        return torch.cat([weight_DD, (y_D - x_D @ weight_DD)[None]])


def fit(vlm: "VLM", layers: Sequence[int], token_N: Tensor, ridge: float = RIDGE) -> Lens:
    """The lens of some layers (1 .. L), fitted on tokens in the place of an image's, ROW of them at a time.

    token_N: their ids: random lists that cover the vocabulary's words, texts, or both. Memory does not depend on N:
    16 D^2 bytes a layer.
    """
    sums = {layer: Ridge(vlm.llm.dim, vlm.device) for layer in layers}
    for _, embed_ND, hidden in control.states(vlm, token_N, vlm.llm.embed, layers):
        for layer, hidden_ND in hidden.items():
            sums[layer].add(normalised(hidden_ND), embed_ND.float())
    return Lens({layer: own.solve(ridge).float() for layer, own in sums.items()})


def lens_of(vlm: "VLM", layers: Sequence[int], texts: Sequence[str] = ()) -> Lens:
    """The lens of some layers of a language model: fitted on random lists of its words, and on texts where there are
    any; kept in the cache by what it was fitted on, weights included. Minutes for a large model.

    A CheckError for a layer that there is not.
    """
    layers = sorted({layer for layer in layers if layer})
    vlm.check_layers(layers)
    token_N = tokens(vlm, texts)

    def fitted() -> dict[str, Tensor]:
        log.info("a lens for each of %d layers is fitted on %d tokens", len(layers), len(token_N))
        return {str(layer): map_ED for layer, map_ED in fit(vlm, layers, token_N).maps.items()}

    maps = kept(vlm.llm, ["lens", layers, RIDGE, token_N.tolist()], fitted)
    return Lens({layer: maps[str(layer)] for layer in layers})


def tokens(vlm: "VLM", texts: Sequence[str] = ()) -> Tensor:
    """token_N that a lens is fitted on: TOKENS of random lists of words, then as many of the texts."""
    return torch.cat([control.lists(word_tokens(vlm.llm), TOKENS, seed=0), control.text(vlm, texts)[:TOKENS]])
