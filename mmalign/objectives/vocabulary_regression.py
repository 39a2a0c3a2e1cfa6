"""Regression to the vocabulary: each visual token towards the mixture of words that it is most like.

Letters beside the family's: N visual tokens of any images, R of them at a time.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import CheckError, one_of
from mmalign.llms.rows import chunks, logits, wide
from mmalign.objectives import Context, Objective, Step, per_image

DISTANCES = ("l2", "cosine")
LIMIT = {"cpu": 128 << 20, "cuda": 512 << 20}  # bytes of cosines and probabilities at a time
BYTES = 8  # of two fp32 numbers, the most that is held of a row and token


@torch.no_grad()
def mixtures(tokens_ND: Tensor, embed_VD: Tensor, temperature: float) -> Tensor:
    """mixture_ND, fp32 (fp64 from fp64): sum_v p_v E_v, p the softmax over the vocabulary of cosine / temperature."""
    unit_ND = F.normalize(wide(tokens_ND), dim=-1).to(embed_VD.dtype)
    scale_V = _lengths(embed_VD).mul_(temperature).clamp_(min=1e-12).reciprocal_()
    mixture_ND = torch.empty_like(wide(unit_ND))
    for rows in chunks(len(unit_ND), embed_VD, LIMIT, BYTES):
        share_RV = logits(unit_ND[rows], embed_VD).mul_(scale_V)
        share_RV = share_RV.softmax(-1).to(embed_VD.dtype)
        mixture_ND[rows] = wide(share_RV @ embed_VD)
        del share_RV  # before the next rows' cosines are made
    return mixture_ND


def _lengths(embed_VD: Tensor) -> Tensor:
    """length_V of the rows, some at a time: no copy of E in fp32 is made."""
    return torch.cat([torch.linalg.vector_norm(wide(rows_RD), dim=-1) for rows_RD in torch.split(embed_VD, 4096)])


def vocabulary_regression_loss(
    tokens_BQD: Tensor,
    embed_VD: Tensor,
    counted_BQ: Tensor | None = None,
    *,
    temperature: float = 0.01,
    distance: str = "l2",
) -> Tensor:
    """Regress each visual token to its own mixture of word embeddings, a constant: sum_v p_v E_v, with p the softmax
    of cos(token, E_v) / temperature over the vocabulary. No paper's; see `VocabularyRegression`.

    tokens_BQD: visual tokens. embed_VD: E, the language model's input embeddings, a constant. counted_BQ: which tokens
    count; None: all. distance: l2, squared and the mean over the width; cosine, 1 - cos.

    Mean over images of the mean over their tokens. Scalar, fp32 (fp64 from fp64); 0 without images, or for an image of
    which nothing counts. tokens x vocabulary is never held. Raises CheckError where shapes do not fit.
    """
    one_of("distance", distance, DISTANCES)
    _check_temperature(temperature)
    shape = tuple(tokens_BQD.shape)
    counted_BQ = torch.ones(shape[:2], device=tokens_BQD.device) if counted_BQ is None else counted_BQ
    if len(shape) != 3 or tuple(counted_BQ.shape) != shape[:2]:
        what = f"visual tokens have the shape {shape}, which count {tuple(counted_BQ.shape)}"
        raise CheckError(what, at="args.tokens_BQD", fix="images x tokens x width, and images x tokens")
    if embed_VD.shape[-1] != shape[2]:
        what = f"embeddings have {embed_VD.shape[-1]} numbers each, visual tokens {shape[2]}"
        raise CheckError(what, at="args.embed_VD", fix="the input embeddings of the model that reads the tokens")
    token_ND = wide(tokens_BQD.flatten(0, 1))
    mixture_ND = mixtures(tokens_BQD.detach().flatten(0, 1), embed_VD.detach(), temperature).to(token_ND.dtype)
    if distance == "l2":
        gap_N = (token_ND - mixture_ND).square().mean(-1)
    else:
        gap_N = 1 - F.cosine_similarity(token_ND, mixture_ND, dim=-1)
    return (gap_N * per_image(counted_BQ.to(gap_N.dtype)).flatten()).sum()


class VocabularyRegression(Objective):
    """Pull each visual token to the mixture of word embeddings that it is itself most like: regression to the
    vocabulary.

    A name without a definition: other methods are set against it, and no paper that we know has it as a training loss
    with an equation to follow, so what stands here is ours. Its mixture is that of methods which make visual tokens of
    words by construction (VW-LMM's variant, arXiv 2403.07720; AlignVLM, arXiv 2502.01341), with the cosines and the
    temperature of VLAP's published code (arXiv 2404.09632) in place of a layer that learns. Cosines, since plain
    products depend on lengths, which differ from model to model. The mixture is a constant: with a gradient, it would
    come to meet the token. Nothing here says which words are right: a token is drawn to where words are, and to those
    that are near already.

    All rows of E are words here, those that no text has among them. Tokens of patches that show no picture do not
    count.

    temperature: of the softmax over cosines, VLAP's (of no paper here); the lower, the more is the mixture one word.
    distance: l2, which also gives tokens the length of word embeddings, or cosine, 1 - cos, which leaves lengths alone
    (of no paper).
    """

    needs = frozenset({"states"})  # which bring E
    collective = True  # ZeRO-3 gathers E from all ranks

    def __init__(self, temperature: float = 0.01, distance: Literal["l2", "cosine"] = "l2") -> None:
        super().__init__()
        _check_temperature(temperature)
        one_of("distance", distance, DISTANCES)
        self.temperature, self.distance = temperature, distance

    def prepare(self, context: Context) -> None:
        self.state_layers = (0,)

    def forward(self, step: Step) -> Tensor:
        """Mean over images of the mean distance over their tokens. Scalar, fp32."""
        with step.vocabulary() as embed_VD:
            return vocabulary_regression_loss(
                step.visual_BPD, embed_VD, step.counted_BP, temperature=self.temperature, distance=self.distance
            )


def _check_temperature(temperature: float) -> None:
    if temperature <= 0:
        raise CheckError(f"temperature must be above 0, got {temperature:g}", at="args.temperature")
