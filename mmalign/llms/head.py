"""A language model's head, and the loss of its tokens without ever holding rows x vocabulary of many rows.

Letters: N rows (trained tokens, or visual ones), R of them at a time, T tokens of a row, D width, V vocabulary.

Two matrix products cannot be avoided: the logits, and the gradient of the rows; a head that learns needs a third. Rows
are taken in chunks over the whole vocabulary, so that no product is done twice, and the gradient is made in the forward
pass, so that nothing but it is kept.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mmalign.llms.rows import chunks, logits, wide

LIMIT = {"cpu": 128 << 20, "cuda": 512 << 20}  # bytes of logits and probabilities at a time
BYTES = 6  # of an fp32 and a bf16 number, the most that is held of a row and token


class Head(nn.Linear):
    """An output layer of transformers, which can be asked for the loss of tokens in place of logits.

    Either is one call of the module: under ZeRO-3 its weight is whole inside it, and every rank makes as many calls.
    """

    @classmethod
    def take(cls, layer: nn.Module) -> None:
        """Make the layer one of these, where it is: its weight may be tied to others. A layer of another kind stays."""
        if type(layer) is nn.Linear and layer.bias is None:
            layer.__class__ = cls

    def forward(
        self,
        hidden_ND: Tensor,
        token_N: Tensor | None = None,
        weight_N: Tensor | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """logits_NV; or, given tokens and how much each counts, their `nll`."""
        if token_N is None or weight_N is None:
            return super().forward(hidden_ND)
        return nll(hidden_ND, self.weight, token_N, weight_N, softcap)


def nll(hidden_ND: Tensor, embed_VD: Tensor, token_N: Tensor, weight_N: Tensor, softcap: float | None = None) -> Tensor:
    """Sum over rows of weight * -log softmax(hidden E^T)[token]. Scalar, fp32 (fp64 from fp64); 0 without rows.

    token_N, weight_N: or (N, T), of T tokens a row for one product with E; what counts 0 may be any token. softcap:
    logits become softcap * tanh(logits / softcap) first (Gemma 2, arXiv 2408.00118). Gradients reach the rows and E,
    weights are constants.
    """
    token_NT, weight_NT = (one if one.dim() == 2 else one[:, None] for one in (token_N, weight_N))
    loss: Tensor = _Nll.apply(hidden_ND, embed_VD, token_NT, weight_NT, softcap)
    return loss


class _Nll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, embed_VD: Tensor, token_NT: Tensor, weight_NT: Tensor, softcap: float | None
    ) -> Tensor:
        rows_ND, embed_VD = hidden_ND.detach().to(embed_VD.dtype), embed_VD.detach()
        of_rows, of_embed = ctx.needs_input_grad[:2]
        weight_NT = weight_NT.to(wide(embed_VD[:0]).dtype)
        scale_N1 = weight_NT.sum(1, keepdim=True)
        share_NT = weight_NT / torch.where(scale_N1 == 0, 1, scale_N1)
        total = weight_NT.new_zeros(())
        grad_ND, grad_VD = torch.empty_like(rows_ND) if of_rows else None, None
        for rows in chunks(len(rows_ND), embed_VD, LIMIT, BYTES):
            scale_R1 = scale_N1[rows]
            nll_R, gap_RV = _rows(logits(rows_ND[rows], embed_VD), token_NT[rows], share_NT[rows], softcap)
            total += (nll_R * scale_R1[:, 0]).sum()
            gap_RV = gap_RV.to(embed_VD.dtype)
            if grad_ND is not None:
                grad_ND[rows] = (gap_RV @ embed_VD) * scale_R1
            if of_embed:
                product_VD = gap_RV.T @ (rows_ND[rows] * scale_R1).to(embed_VD.dtype)
                grad_VD = product_VD if grad_VD is None else wide(grad_VD).add_(product_VD)
            del gap_RV  # before the next rows' logits are made
        if of_embed:
            grad_VD = torch.zeros_like(embed_VD) if grad_VD is None else grad_VD.to(embed_VD.dtype)
        ctx.save_for_backward(None if grad_ND is None else grad_ND.to(hidden_ND.dtype), grad_VD)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        of_rows, of_embed = (None if g is None else g * grads[0].to(g.dtype) for g in ctx.saved_tensors)
        return of_rows, of_embed, None, None, None


def _rows(logits_RV: Tensor, token_RT: Tensor, share_RT: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """nll_R, and its gradient to the logits as the head made them: softmax - the tokens' shares, which sum to 1.

    Logits are overwritten, and nothing else of their size is made but where they are capped.
    """
    own_RV, capped_RV = logits_RV, None
    if softcap:
        capped_RV = logits_RV.div_(softcap).tanh_()
        own_RV = capped_RV * softcap
    own_RV -= own_RV.amax(1, keepdim=True)
    of_tokens_R = (own_RV.gather(1, token_RT) * share_RT).sum(1)
    gap_RV = own_RV.exp_()
    sum_R1 = gap_RV.sum(1, keepdim=True)
    gap_RV /= sum_R1
    gap_RV.scatter_add_(1, token_RT, -share_RT)
    if capped_RV is not None:
        gap_RV -= capped_RV.square_().mul_(gap_RV)  # tanh' = 1 - tanh^2
    return sum_R1[:, 0].log() - of_tokens_R, gap_RV
