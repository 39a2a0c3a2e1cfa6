"""KL divergence of two vocabulary distributions without ever holding rows x vocabulary (BASIC, eq. 7; VW-LMM).

Letters: N rows (visual tokens of any images), R of them at a time, D width, V vocabulary.

Three matrix products cannot be avoided: both logits, and the gradient; a fourth where targets have one, too, and one
more for each matrix that learns. Rows are taken in chunks over the whole vocabulary, so that no product is done twice,
and the gradients are made in the forward pass, so that nothing but they are kept. On a CPU what is no product is done
for a few rows of a chunk after the other, in its cache: a chunk is thick for the products' sake.
"""

from typing import Any

import torch
from torch import Tensor

from mmalign.llms.rows import Product, chunks, wide

LIMIT = {"cpu": 288 << 20, "cuda": 512 << 20}  # bytes of logits, and what is held beside them, at a time
MOST = {"cpu": 288}  # rows of a chunk: products of more are no faster
NUMBERS = {"cpu": 1 << 17}  # of rows x vocabulary, those of one row at least, for which all but the products is done at
# a time; elsewhere all of the chunk's


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


Room = tuple[Tensor, ...]


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
        room: Room | None = None
        for rows in chunks(len(own_ND), own_VD, LIMIT, held(own_VD, softcap), MOST.get(own_VD.device.type)):
            count, scale_R1 = rows.stop - rows.start, weight_N[rows, None]
            room = room or tuple(weight_N.new_empty(count, len(own_VD)) for _ in range(2))
            own_RV, target_RV = own.logits(rows, room[0][:count]), target.logits(rows, room[1][:count])
            total += (scale_R1[:, 0] * rows_kl(own_RV, target_RV, softcap, of_target or of_target_VD)).sum()
            if of_target or of_target_VD:
                target.back(rows, target_RV, scale_R1)
            if of_own or of_own_VD:
                own.back(rows, own_RV, scale_R1)
        ctx.save_for_backward(*own.gradients(), *target.gradients())
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        each = (None if g is None else g * grads[0].to(g.dtype) for g in ctx.saved_tensors)
        own_ND, own_VD, target_ND, target_VD = each
        return own_ND, target_ND, None, own_VD, target_VD, None


def held(embed_VD: Tensor, softcap: float | None) -> int:
    """Bytes of a row and token: two logits in fp32; and what is made of them, where that is made of a whole chunk."""
    return 8 if embed_VD.device.type in NUMBERS else 12 + 4 * bool(softcap)


def rows_kl(own_RV: Tensor, target_RV: Tensor, softcap: float | None = None, of_target: bool = False) -> Tensor:
    """kl_R. Own logits are overwritten by its gradient to them; those of the target, with `of_target`, too."""
    rows = max(1, NUMBERS.get(own_RV.device.type, own_RV.numel()) // own_RV.shape[1])
    pairs = zip(torch.split(own_RV, rows), torch.split(target_RV, rows), strict=True)
    return torch.cat([_rows_kl(own_rV, target_rV, softcap, of_target) for own_rV, target_rV in pairs])


def _rows_kl(raw_RV: Tensor, target_RV: Tensor, softcap: float | None, of_target: bool) -> Tensor:
    """See rows_kl.

    KL(p || q) = sum p (log p - log q), and log p - log q = target - own - (their logsumexps' difference). Its gradient
    to the own logits is q - p, that to the target's p (log p - log q - kl).
    """
    own_RV = raw_RV.div_(softcap).tanh_() * softcap if softcap else raw_RV
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
    q_RV /= sum_q_R1
    q_RV -= p_RV
    if softcap:
        torch.sub(q_RV, raw_RV.square_().mul_(q_RV), out=raw_RV)  # tanh' = 1 - tanh^2
    if of_target:
        target_RV.addcmul_(p_RV, gap_R1, value=-1)
    return (gap_R1 - (sum_p_R1 / sum_q_R1).log())[:, 0]
