"""KL divergence of two vocabulary distributions without ever holding patches x vocabulary (BASIC, eq. 7).

Letters: M rows (patches of any images), D width, V vocabulary.

Three matrix products cannot be avoided: both logits, and the gradient. Rows are taken in chunks over the whole
vocabulary, so that no product is done twice, and the gradient is made in the forward pass, so that nothing but it is
kept.
"""

from typing import Any

import torch
from torch import Tensor

from mmalign.llms.rows import chunks, logits, wide

LIMIT = {"cpu": 144 << 20, "cuda": 512 << 20}  # bytes of logits and probabilities at a time
BYTES = 12  # of three fp32 numbers, the most that is held of a row and token


def vocabulary_kl(visual_MD: Tensor, target_MD: Tensor, weight_M: Tensor, embed_VD: Tensor) -> Tensor:
    """Sum over rows of weight * KL(softmax(target E^T) || softmax(visual E^T)). Scalar, fp32 (fp64 from fp64).

    Only `visual_MD` gets a gradient: targets, weights and the embedding matrix E are constants.
    """
    loss: Tensor = _KL.apply(visual_MD, target_MD, weight_M, embed_VD)
    return loss


class _KL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, visual_MD: Tensor, target_MD: Tensor, weight_M: Tensor, embed_VD: Tensor) -> Tensor:
        own_MD, target_MD = visual_MD.detach().to(embed_VD.dtype), target_MD.detach().to(embed_VD.dtype)
        grad_MD = wide(torch.empty_like(own_MD))
        total = grad_MD.new_zeros(())
        for rows in chunks(len(own_MD), embed_VD, LIMIT, BYTES):
            kl_R, gap_RV = rows_kl(logits(own_MD[rows], embed_VD), logits(target_MD[rows], embed_VD))
            total += (wide(weight_M[rows]) * kl_R).sum()
            gap_RV *= wide(weight_M[rows, None])
            grad_MD[rows] = gap_RV.to(embed_VD.dtype) @ embed_VD
            del gap_RV  # before the next rows' logits are made
        ctx.save_for_backward(grad_MD.to(visual_MD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_MD,) = ctx.saved_tensors
        return grad_MD * grads[0].to(grad_MD.dtype), None, None, None


def rows_kl(own_RV: Tensor, target_RV: Tensor) -> tuple[Tensor, Tensor]:
    """kl_R and its gradient to the own logits, q - p; both logits are overwritten, one more of their size is made.

    KL(p || q) = sum p (log p - log q), and log p - log q = target - own - (their logsumexps' difference).
    """
    target_RV -= target_RV.amax(1, keepdim=True)
    own_RV -= own_RV.amax(1, keepdim=True)
    p_RV = target_RV.exp()
    sum_p_R1 = p_RV.sum(1, keepdim=True)
    p_RV /= sum_p_R1
    target_RV -= own_RV
    target_RV *= p_RV
    q_RV = own_RV.exp_()
    sum_q_R1 = q_RV.sum(1, keepdim=True)
    kl_R = target_RV.sum(1) - (sum_p_R1 / sum_q_R1).log()[:, 0]
    q_RV /= sum_q_R1
    q_RV -= p_RV
    return kl_R, q_RV
