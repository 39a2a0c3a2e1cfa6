"""What a module that mixes tokens gives for each patch alone: dense features from layers trained to pool."""

from collections.abc import Callable

import torch
from torch import Tensor

SEQUENCES = 32_768  # at a time: CUDA's attention kernels take at most 65,535


def alone(module: Callable[[Tensor], Tensor], patches_BPC: Tensor) -> Tensor:
    """Every patch through `module` as a sequence of its own: (B, P, the width of its output)."""
    single_N1C = patches_BPC.reshape(-1, 1, patches_BPC.shape[-1])
    output = torch.cat([module(some_N1C) for some_N1C in torch.split(single_N1C, SEQUENCES)])
    return output.reshape(*patches_BPC.shape[:2], output.shape[-1])
