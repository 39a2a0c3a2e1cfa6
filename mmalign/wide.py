"""Numbers of half precision in products and sums that keep more of them.

Letters: R rows, D width, V vocabulary.
"""

import torch
from torch import Tensor


def wide(given: Tensor) -> Tensor:
    """A tensor in fp32 or, where it comes in fp64, as it is."""
    return given.to(torch.promote_types(given.dtype, torch.float32))


def logits(rows_RD: Tensor, embed_VD: Tensor) -> Tensor:
    """logits_RV in fp32 (fp64 from fp64); on CUDA without rounding them to bf16 on the way."""
    if rows_RD.is_cuda and rows_RD.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(rows_RD, embed_VD.T, out_dtype=torch.float32)
    return wide(rows_RD @ embed_VD.T)
