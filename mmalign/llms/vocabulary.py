"""KL divergence of two vocabulary distributions without ever holding rows x vocabulary (BASIC, eq. 7; VW-LMM).

Letters: N rows (visual tokens of any images), R of them at a time, D width, V vocabulary.

Three matrix products cannot be avoided: both logits, and the gradient; a fourth where targets have one, too, and one
more for each matrix that learns. Rows are taken in chunks over the whole vocabulary, so that no product is done twice,
and the gradients are made in the forward pass, so that nothing but they are kept.
"""

from typing import Any

import torch
from torch import Tensor

from mmalign.llms.rows import Product, chunks, wide

LIMIT = {"cpu": 144 << 20, "cuda": 512 << 20}  # bytes of logits and probabilities at a time
BYTES = 12  # of three fp32 numbers, the most that is held of a row and token; one more where logits are capped


def vocabulary_kl(
    own_ND: Tensor,
    target_ND: Tensor,
    weight_N: Tensor,
    own_VD: Tensor,
    target_VD: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Sum over rows of weight * KL(softmax(target T^T) || softmax(own O^T)). Scalar, fp32 (fp64 from fp64).

    own_VD: O. target_VD: T; None: O, a constant there. softcap: own logits become softcap * tanh(logits / softcap)
    first (Gemma 2, arXiv 2408.00118). Rows and matrices get a gradient where they want one, weights are constants.
    """
    loss: Tensor = _KL.apply(
        own_ND, target_ND, weight_N, own_VD, own_VD.detach() if target_VD is None else target_VD, softcap
    )
    return loss


class _KL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        own_ND: Tensor,
        target_ND: Tensor,
        weight_N: Tensor,
        own_VD: Tensor,
        target_VD: Tensor,
        softcap: float | None,
    ) -> Tensor:
        of_own, of_target, _, of_own_VD, of_target_VD, _ = ctx.needs_input_grad
        own, target = Product(own_ND, own_VD, of_own, of_own_VD), Product(target_ND, target_VD, of_target, of_target_VD)
        weight_N = weight_N.detach().to(wide(own_VD[:0]).dtype)
        total = weight_N.new_zeros(())
        for rows in chunks(len(own_ND), own_VD, LIMIT, BYTES + 4 * bool(softcap)):
            own_RV, capped_RV, scale_R1 = own.logits(rows), None, weight_N[rows, None]
            if softcap:
                capped_RV = own_RV.div_(softcap).tanh_()
                own_RV = capped_RV * softcap
            target_RV = target.logits(rows)
            kl_R, gap_RV = rows_kl(own_RV, target_RV, of_target or of_target_VD)
            total += (scale_R1[:, 0] * kl_R).sum()
            if of_target or of_target_VD:
                target.back(rows, target_RV, scale_R1)
            del target_RV
            if capped_RV is not None:
                gap_RV -= capped_RV.square_().mul_(gap_RV)  # tanh' = 1 - tanh^2
            if of_own or of_own_VD:
                own.back(rows, gap_RV, scale_R1)
            del own_RV, gap_RV, capped_RV  # before the next rows' logits are made
        ctx.save_for_backward(*own.gradients(), *target.gradients())
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        each = (None if g is None else g * grads[0].to(g.dtype) for g in ctx.saved_tensors)
        own_ND, own_VD, target_ND, target_VD = each
        return own_ND, target_ND, None, own_VD, target_VD, None


def rows_kl(own_RV: Tensor, target_RV: Tensor, of_target: bool = False) -> tuple[Tensor, Tensor]:
    """kl_R and its gradient to the own logits, q - p. Both logits are overwritten, those of the target, with
    `of_target`, by the gradient to them, p (log p - log q - kl); one more of their size is made.

    KL(p || q) = sum p (log p - log q), and log p - log q = target - own - (their logsumexps' difference).
    """
    target_RV -= target_RV.amax(1, keepdim=True)
    own_RV -= own_RV.amax(1, keepdim=True)
    p_RV = target_RV.exp()
    sum_p_R1 = p_RV.sum(1, keepdim=True)
    p_RV /= sum_p_R1
    target_RV -= own_RV
    target_RV *= p_RV
    gap_R1 = target_RV.sum(1, keepdim=True)
    q_RV = own_RV.exp_()
    sum_q_R1 = q_RV.sum(1, keepdim=True)
    kl_R = (gap_R1 - (sum_p_R1 / sum_q_R1).log())[:, 0]
    q_RV /= sum_q_R1
    q_RV -= p_RV
    if of_target:
        target_RV.addcmul_(p_RV, gap_R1, value=-1)
    return kl_R, q_RV
