"""A language model's head, and the loss of its tokens without ever holding rows x vocabulary of many rows.

Letters: N rows (trained tokens, or visual ones), R of them at a time, T tokens of a row, D width, V vocabulary.

Two matrix products cannot be avoided: the logits, and the gradient of the rows; a head that learns needs a third. Rows
are taken in chunks over the whole vocabulary, so that no product is done twice, and the gradient is made in the forward
pass, so that nothing but it is kept.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.llms.rows import Product, chunks, wide

LIMIT = {"cpu": 128 << 20, "cuda": 512 << 20}  # bytes of logits and probabilities at a time
BYTES = 6  # of an fp32 and a bf16 number, the most that is held of a row and token


class Head(nn.Linear):
    """An output layer of transformers, which can be asked for a loss in place of logits.

    Either is one call of the module: under ZeRO-3 its weight is whole inside it, and every rank makes as many calls.
    """

    @classmethod
    def take(cls, layer: nn.Module) -> None:
        """Make the layer one of these, where it is: its weight may be tied to others. A layer of another kind stays."""
        if type(layer) is nn.Linear and layer.bias is None:
            layer.__class__ = cls

    def forward(self, hidden_ND: Tensor, loss: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        """logits_NV; or what a loss makes of the hidden states and the weight, see `nll` and `vocabulary_kl`."""
        return super().forward(hidden_ND) if loss is None else loss(hidden_ND, self.weight)


def ask(layer: nn.Module, hidden_ND: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
    """What a loss makes of hidden states and an output layer's weight, as `Head`, of a layer whose class is its own.

    One call of the layer, with its hooks. None for a layer of another kind, or with a bias.
    """
    if type(layer) not in (nn.Linear, Head) or layer.bias is not None or "forward" in vars(layer):
        return None
    vars(layer)["forward"] = lambda own_ND: loss(own_ND, layer.weight)
    try:
        asked: Tensor = layer(hidden_ND)
    finally:
        del vars(layer)["forward"]
    return asked


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
        product = Product(hidden_ND, embed_VD, *ctx.needs_input_grad[:2])
        weight_NT = weight_NT.to(wide(embed_VD[:0]).dtype)
        scale_N1 = weight_NT.sum(1, keepdim=True)
        share_NT = weight_NT / torch.where(scale_N1 == 0, 1, scale_N1)
        total = weight_NT.new_zeros(())
        for rows in chunks(len(hidden_ND), embed_VD, LIMIT, BYTES):
            scale_R1 = scale_N1[rows]
            nll_R, gap_RV = _rows(product.logits(rows), token_NT[rows], share_NT[rows], softcap)
            total += (nll_R * scale_R1[:, 0]).sum()
            product.back(rows, gap_RV, scale_R1)
            del gap_RV  # before the next rows' logits are made
        ctx.save_for_backward(*product.gradients())
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
