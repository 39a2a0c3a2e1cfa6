"""Numbers of half precision in products and sums that keep more of them.

Letters: R rows, D width, V vocabulary.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

LEAST = 128  # rows at a time, whatever the vocabulary: thinner products are slow, for E is read for each of them


def wide(tensor: Tensor) -> Tensor:
    """A tensor in fp32 or, where it comes in fp64, as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def logits(rows_RD: Tensor, embed_VD: Tensor) -> Tensor:
    """logits_RV in fp32 (fp64 from fp64); on CUDA without rounding them to bf16 on the way."""
    if rows_RD.is_cuda and rows_RD.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(rows_RD, embed_VD.T, out_dtype=torch.float32)
    return wide(rows_RD @ embed_VD.T)


def chunks(rows: int, embed_VD: Tensor, limit: Mapping[str, int], held: int) -> Iterator[slice]:
    """All of `rows`, so many at a time that what is held of a row and token, in bytes, stays below the device's limit;
    but never fewer than LEAST."""
    size = at_once(len(embed_VD), embed_VD.device, limit, held)
    yield from (slice(start, start + size) for start in range(0, rows, size))


def at_once(vocab: int, device: torch.device, limit: Mapping[str, int], held: int) -> int:
    """How many rows that is."""
    return max(LEAST, limit.get(device.type, limit["cpu"]) // (held * vocab))
