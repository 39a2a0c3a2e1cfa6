"""VLAP: image and caption are assigned to the language model's words, and each predicts the other's assignment
(arXiv 2404.09632).

Letters beside the family's: N samples that have an image and a caption.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import CheckError
from mmalign.llms.rows import wide
from mmalign.objectives import Context, Layer, Objective, Step, numbered
from mmalign.objectives.caption_contrast import sides

ROWS = 4096  # of E at a time, in fp32
SMOOTH = 0.25  # of the words' frequencies, in the published code


def assign(alike_NV: Tensor, prior_V: Tensor, epsilon: float, rounds: int) -> Tensor:
    """target_NV: to which words each sample is assigned, each row's sum 1; by Sinkhorn's algorithm, in logarithms.

    The plan that joins samples, 1 / N of the mass each, with words, `prior` of it each, and prefers the alike.
    """
    plan_NV = alike_NV / epsilon
    for _ in range(rounds):
        plan_NV = plan_NV - plan_NV.logsumexp(0, keepdim=True) + prior_V.log()
        plan_NV = plan_NV - plan_NV.logsumexp(1, keepdim=True)
    return plan_NV.exp()


def assignment_loss(
    visual_ND: Tensor,
    text_ND: Tensor,
    embed_VD: Tensor,
    prior_V: Tensor,
    *,
    temperature: float = 0.01,
    epsilon: float = 0.01,
    rounds: int = 3,
) -> Tensor:
    """Predict from each image to which words its caption is assigned, and the other way round: VLAP (arXiv 2404.09632).

    visual_ND, text_ND: unit vectors of pairs. embed_VD: E, the input embeddings, a constant. prior_V: how much of all
    assignments each word gets, sum 1. temperature, epsilon: of the prediction, of the assignment. rounds: of Sinkhorn.

    Mean over pairs of the two cross-entropies' mean. Scalar, fp32 (fp64 from fp64); 0 without pairs. Samples x
    vocabulary is held; never tokens x vocabulary, nor a copy of E.
    """
    if not len(visual_ND):
        return wide(visual_ND).sum() + wide(text_ND).sum()
    alike = [_cosines(unit_ND.detach(), embed_VD.detach()) for unit_ND in (visual_ND, text_ND)]
    to_visual_NV, to_text_NV = (assign(alike_NV, prior_V, epsilon, rounds) for alike_NV in alike)
    by_visual: Tensor = _Predict.apply(visual_ND, alike[0], to_text_NV, embed_VD, temperature)
    by_text: Tensor = _Predict.apply(text_ND, alike[1], to_visual_NV, embed_VD, temperature)
    return (by_visual + by_text) / (2 * len(visual_ND))


def _parts(embed_VD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(rows, their unit vectors in fp32), some rows at a time."""
    for start in range(0, len(embed_VD), ROWS):
        rows = slice(start, start + ROWS)
        yield rows, F.normalize(wide(embed_VD[rows]), dim=-1)


def _cosines(unit_ND: Tensor, embed_VD: Tensor) -> Tensor:
    return torch.cat([wide(unit_ND) @ unit_RD.T for _, unit_RD in _parts(embed_VD)], 1)


class _Predict(torch.autograd.Function):
    """Sum over samples of the cross-entropy of softmax(alike / temperature) to a target.

    The gradient is made in the forward pass: under ZeRO-3 E is gone in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, unit_ND: Tensor, alike_NV: Tensor, target_NV: Tensor, embed_VD: Tensor, temperature: float
    ) -> Tensor:
        log_NV = (alike_NV / temperature).log_softmax(1)
        gap_NV = (log_NV.exp() - target_NV) / temperature
        grad_ND = torch.zeros_like(wide(unit_ND))
        for rows, unit_RD in _parts(embed_VD.detach()):
            grad_ND += gap_NV[:, rows] @ unit_RD
        ctx.save_for_backward(grad_ND.to(unit_ND.dtype))
        return -(target_NV * log_NV).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grads[0].to(grad_ND.dtype), None, None, None, None


class Assignment(Objective):
    """Assign image and caption to the language model's words by optimal transport; each predicts the other's (VLAP).

    An image is the mean of its visual tokens, a caption that of its own, as unit vectors; words are the whole input
    vocabulary. As we read it, the paper assigns with Sinkhorn's algorithm, words getting their frequency in the
    training captions; here it is their frequency in this pass's captions, smoothed as in the published code:
    softmax(frequency / 0.25). That code differs where images are one vector each: it multiplies with the frequencies
    and never divides by what a word already gets, so that nothing is transported. The paper's algorithm is followed:
    a pass needs several pairs. The code takes for a caption what the language model makes of it, read alone; here it
    stands behind its picture, and words as they go in are taken, which have not seen it.

    temperature, epsilon, rounds: of the prediction, of the assignment, and of Sinkhorn's algorithm (0.01, 0.01 and 3 in
    the paper's code). layer: 0, what goes into the language model; one deeper has seen the picture (not in the paper).
    """

    needs = frozenset({"states", "captions"})
    collective = True  # ZeRO-3 gathers E from all ranks

    def __init__(self, temperature: float = 0.01, epsilon: float = 0.01, rounds: int = 3, layer: Layer = 0) -> None:
        super().__init__()
        for name, value in (("temperature", temperature), ("epsilon", epsilon), ("rounds", rounds)):
            if value <= 0:
                raise CheckError(f"{name} must be above 0, got {value:g}", at=f"args.{name}")
        self.temperature, self.epsilon, self.rounds, self.layer = temperature, epsilon, rounds, layer

    def prepare(self, context: Context) -> None:
        self.state_layers = (numbered(self.layer, context.layers),)

    def forward(self, step: Step) -> Tensor:
        """Mean over the pairs of this pass. Scalar, fp32."""
        visual_ND, text_ND = sides(step, self.state_layers[0])
        step.note("assigned", len(visual_ND))
        with step.vocabulary() as embed_VD:
            count_V = torch.bincount(step.caption_id_M, minlength=len(embed_VD)).to(visual_ND.dtype)
            prior_V = (count_V / count_V.sum().clamp(min=1) / SMOOTH).softmax(0)
            return assignment_loss(
                visual_ND, text_ND, embed_VD, prior_V,
                temperature=self.temperature, epsilon=self.epsilon, rounds=self.rounds,
            )  # fmt: skip
