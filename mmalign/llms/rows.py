"""Numbers of half precision in products and sums that keep more of them, and products with a vocabulary by rows.

Letters: N rows, R of them at a time, D width, V vocabulary.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

LEAST = 128  # rows at a time, whatever the vocabulary: thinner products are slow, for E is read for each of them


def wide(tensor: Tensor) -> Tensor:
    """A tensor in fp32 or, where it comes in fp64, as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def logits(rows_RD: Tensor, embed_VD: Tensor, into_RV: Tensor | None = None) -> Tensor:
    """logits_RV in fp32 (fp64 from fp64), written into this room where one is given; on CUDA without rounding them to
    bf16 on the way."""
    if rows_RD.is_cuda and rows_RD.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(rows_RD, embed_VD.T, out_dtype=torch.float32, out=into_RV)
    if into_RV is None or into_RV.dtype != embed_VD.dtype:
        product_RV = rows_RD @ embed_VD.T
        return wide(product_RV) if into_RV is None else into_RV.copy_(product_RV)
    return torch.mm(rows_RD, embed_VD.T, out=into_RV)


def chunks(
    rows: int, embed_VD: Tensor, limit: Mapping[str, int], held: int, most: int | None = None
) -> Iterator[slice]:
    """All of `rows`, so many at a time that what is held of a row and token, in bytes, stays below the device's limit;
    but never fewer than LEAST, nor more than `most`. They are shared out evenly: a thin rest would be slow."""
    size = max(LEAST, limit.get(embed_VD.device.type, limit["cpu"]) // (held * len(embed_VD)))
    size = size if most is None else min(size, most)
    even = -(-rows // -(-rows // size)) if rows else size
    yield from (slice(start, min(start + even, rows)) for start in range(0, rows, even))


class Product:
    """Rows times a matrix, some rows at a time, and the gradients of both: each row's written once, the matrix's added
    up in fp32. What wants no gradient gets none."""

    def __init__(self, rows_ND: Tensor, embed_VD: Tensor, of_rows: bool, of_embed: bool) -> None:
        self.rows_ND, self.embed_VD = rows_ND.detach().to(embed_VD.dtype), embed_VD.detach()
        self.of_embed = of_embed
        self.grad_ND = torch.empty_like(rows_ND, requires_grad=False) if of_rows else None
        self.grad_VD: Tensor | None = None

    def logits(self, rows: slice, into_RV: Tensor | None = None) -> Tensor:
        return logits(self.rows_ND[rows], self.embed_VD, into_RV)

    def back(self, rows: slice, gap_RV: Tensor, scale_R1: Tensor) -> None:
        """Take the gradient of the logits of these rows: gap times scale."""
        gap_RV = gap_RV.to(self.embed_VD.dtype)
        if self.grad_ND is not None:
            self.grad_ND[rows] = (gap_RV @ self.embed_VD) * scale_R1
        if self.of_embed:
            product_VD = gap_RV.T @ (self.rows_ND[rows] * scale_R1).to(self.embed_VD.dtype)
            self.grad_VD = product_VD if self.grad_VD is None else wide(self.grad_VD).add_(product_VD)

    def gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """Of the rows and of the matrix, as precise as these; None for what wants none."""
        if self.of_embed and self.grad_VD is None:  # no row came by
            self.grad_VD = torch.zeros_like(self.embed_VD)
        return self.grad_ND, None if self.grad_VD is None else self.grad_VD.to(self.embed_VD.dtype)
