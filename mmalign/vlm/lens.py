"""A lens for each layer of a language model: what its hidden states say of the input embeddings they came from.

Behind the first layers hidden states need not lie where the input embeddings lie, though they still say which word
they came from. Then no embedding is near to them, whatever they mean, and one looks through the lens first. It is
fitted on words and text, in the place of an image's tokens, and told nothing of images.

Embeddings e and states x, both as they stand at the same tokens, have means and covariances; all that a linear model
says of one by the other follows from these, in closed form. Back: the best guess of e, x W + b, ridge regression.
Forth: x = (e - mean) A + mean + noise, the noise Gaussian with covariance S, the same for all tokens; what a state is
nearest to is then judged in units of that noise, x S^-1/2 against what each embedding would be, for a direction in
which states scatter says less than one in which they do not. (It is Fisher's linear discriminant, the classes' means
linear in their embeddings, so that words never seen have one, too.)

Letters: N tokens, D width of the language model, E = D + 1, V or T embeddings to choose from.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import CheckError
from mmalign.io.texts import read_texts
from mmalign.llms.rows import wide
from mmalign.vlm import control
from mmalign.vlm.kept import kept
from mmalign.vlm.vocabulary import LIMIT, Nearest, word_tokens

if TYPE_CHECKING:
    from mmalign.vlm.model import VLM

EVERYDAY = "pkg:mmalign.vlm/everyday.txt"  # English
TOKENS = 1 << 13  # of random lists of words; and of texts, at most
RIDGE = 1e-4  # of the mean variance of what is regressed on
NOISE = 1e-3  # of the mean variance of the noise, in every direction at least
TINY = 1e-12  # below every mean square: a state of zeros stays one
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Lens:
    """Of each layer three affine maps, W above b of x W + b, in fp32: (E, D).

    maps: a hidden state, over the root of its mean square, back to the input embedding. Layer 0 has none: visual tokens
    are where the embeddings are. white, forth: a state, and an embedding, to where they are compared, in units of the
    noise. 12 D^2 bytes a layer.
    """

    maps: dict[int, Tensor]
    white: Mapping[int, Tensor] = field(default_factory=dict)
    forth: Mapping[int, Tensor] = field(default_factory=dict)

    def __call__(self, layer: int, hidden: Tensor) -> Tensor:
        """The input embeddings that hidden states (..., D) of a layer speak of: (..., D), fp32 (fp64 from fp64)."""
        if not layer:
            return wide(hidden)
        if self.maps[layer].device != hidden.device:  # a model that was moved after the fit: once
            self.maps[layer] = self.maps[layer].to(hidden.device)
        return _affine(normalised(hidden), self.maps[layer])


@dataclass
class Expected(Nearest):
    """Called with a layer's hidden states: the nearest of what a lens expects of each embedding, by the cosine of both
    in units of the noise.

    What is expected is never held, T x D of each layer: its products with a state are those of unit_TD with a vector.
    """

    white_ED: Tensor
    forth_ED: Tensor
    scale_T: Tensor  # an embedding's length, over that of what is expected of it
    shift_T: Tensor  # 1 over the latter

    def _cosines(self, vectors_ND: Tensor) -> Tensor:
        white_ND = F.normalize(_affine(normalised(vectors_ND.float()), self.white_ED), dim=-1)
        cosine_NT = (white_ND @ self.forth_ED[:-1].T) @ self.unit_TD.T
        return cosine_NT.mul_(self.scale_T).addcmul_((white_ND @ self.forth_ED[-1])[:, None], self.shift_T)


@torch.no_grad()
def expected(lens: Lens, layer: int, among: Nearest, embed: control.Embed) -> Expected:
    """What a layer's hidden states are nearest to. embed: what the numbers of `among` stand for."""
    forth_ED, lengths, far = lens.forth[layer], [], []
    for number_T in torch.split(among.number_T, max(1, LIMIT // (4 * forth_ED.shape[1]))):
        embed_TD = embed(number_T).float()
        lengths.append(embed_TD.norm(dim=-1))
        far.append(_affine(embed_TD, forth_ED).norm(dim=-1).clamp(min=TINY))
    length_T, far_T = torch.cat(lengths), torch.cat(far)
    return Expected(among.number_T, among.unit_TD, lens.white[layer], forth_ED, length_T / far_T, 1 / far_T)


def _affine(x: Tensor, map_ED: Tensor) -> Tensor:
    map_ED = map_ED.to(x)
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
        x_D, y_D, xx_DD, xy_DD = self._covariances()
        weight_DD = torch.cholesky_solve(xy_DD, torch.linalg.cholesky(_raised(xx_DD, ridge)))
        return torch.cat([weight_DD, (y_D - x_D @ weight_DD)[None]])

    def noise(self, yy_DD: Tensor, ridge: float, least: float) -> tuple[Tensor, Tensor]:
        """(white_ED, forth_ED), fp64, from x = (y - mean) A + mean + noise: of x and of y, both times S^-1/2 and around
        their means. yy_DD: the sum of y^T y. ridge: of A. least: S has this part of its mean variance in addition.
        """
        x_D, y_D, xx_DD, xy_DD = self._covariances()
        yy_DD = yy_DD / self.sums[-1, self.dim].clamp(min=1) - y_D[:, None] * y_D
        forth_DD = torch.cholesky_solve(xy_DD.T, torch.linalg.cholesky(_raised(yy_DD.clone(), ridge)))
        common_DD = forth_DD.T @ xy_DD.T
        noise_DD = _raised(xx_DD - common_DD - common_DD.T + forth_DD.T @ yy_DD @ forth_DD, least)
        root_DD = torch.linalg.cholesky(noise_DD).T  # S = root^T root
        white_DD, forth_DD = (_over(tensor, root_DD) for tensor in (torch.eye(self.dim).to(xx_DD), forth_DD))
        return (
            torch.cat([white_DD, -(x_D @ white_DD)[None]]),
            torch.cat([forth_DD, -(y_D @ forth_DD)[None]]),
        )

    def _covariances(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(mean of x, mean of y, xx_DD, xy_DD)."""
        dim, means = self.dim, self.sums / self.sums[-1, self.dim].clamp(min=1)
        x_D, y_D = means[-1, :dim], means[-1, dim + 1 :]
        return x_D, y_D, means[:-1, :dim] - x_D[:, None] * x_D, means[:-1, dim + 1 :] - x_D[:, None] * y_D


def _raised(square_DD: Tensor, part: float) -> Tensor:
    """With this part of the mean of its diagonal added to each number of it, in place."""
    square_DD.diagonal().add_(max(part * float(square_DD.diagonal().mean()), TINY))
    return square_DD


def _over(left_DD: Tensor, root_DD: Tensor) -> Tensor:
    """left root^-1, root an upper triangle."""
    over_DD: Tensor = torch.linalg.solve_triangular(root_DD, left_DD, upper=True, left=False)
    return over_DD


def fit(vlm: "VLM", layers: Sequence[int], token_N: Tensor, ridge: float = RIDGE) -> Lens:
    """The lens of some layers (1 .. L), fitted on tokens in the place of an image's, ROW of them at a time.

    token_N: their ids: random lists that cover the vocabulary's words, texts, or both. Memory does not depend on N:
    16 D^2 bytes a layer.
    """
    sums = {layer: Ridge(vlm.llm.dim, vlm.device) for layer in layers}
    yy_DD = torch.zeros(vlm.llm.dim, vlm.llm.dim, dtype=torch.float64, device=vlm.device)
    for _, embed_ND, hidden in control.states(vlm, token_N, vlm.llm.embed, layers):
        for layer, hidden_ND in hidden.items():
            sums[layer].add(normalised(hidden_ND), embed_ND.float())
        yy_DD += embed_ND.double().T @ embed_ND.double()
    for layer, own in sums.items():
        if not bool(own.sums.isfinite().all()):
            what = f"states of layer {layer} of the language model are no finite numbers, so no lens is fitted"
            raise CheckError(what, fix="precision: bf16 or fp32")
    pairs = {layer: own.noise(yy_DD, ridge, NOISE) for layer, own in sums.items()}
    return Lens(
        {layer: own.solve(ridge).float() for layer, own in sums.items()},
        {layer: white_ED.float() for layer, (white_ED, _) in pairs.items()},
        {layer: forth_ED.float() for layer, (_, forth_ED) in pairs.items()},
    )


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
        return {f"{name} {layer}": own[layer] for name, own in vars(fit(vlm, layers, token_N)).items() for layer in own}

    maps = kept(vlm.llm, ["lens", layers, RIDGE, NOISE, token_N.tolist()], fitted)
    return Lens(*({layer: maps[f"{name} {layer}"] for layer in layers} for name in ("maps", "white", "forth")))


def tokens(vlm: "VLM", texts: Sequence[str] = ()) -> Tensor:
    """token_N that a lens is fitted on: TOKENS of random lists of words, then as many of the texts; without texts, of
    EVERYDAY."""
    texts = texts or read_texts(EVERYDAY)
    return torch.cat([control.lists(word_tokens(vlm.llm), TOKENS, seed=0), control.text(vlm, texts)[:TOKENS]])
