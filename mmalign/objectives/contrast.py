"""Symmetric InfoNCE as CLIP trains with it (arXiv 2103.00020, figure 3), and its learnable scale, 1/temperature.

Letters: N pairs, D their width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.llms.rows import wide

MAX_SCALE = 100.0  # CLIP's bound on 1/temperature (section 2.5); SEA names none


def bounded(log_scale: Tensor) -> Tensor:
    """1/temperature in fp32 (fp64 from fp64), of the logarithm that is learned."""
    return wide(log_scale).exp().clamp(max=MAX_SCALE)


def similarities(one_ND: Tensor, other_ND: Tensor, scale: Tensor) -> Tensor:
    """alike_NN: cosines over the temperature (SEA, eq. 8, with 1/tau = scale). Rows are unit vectors."""
    return scale * one_ND @ other_ND.T


def info_nce(alike_NN: Tensor) -> Tensor:
    """Mean over both directions of -log p(pair i | row i) (SEA, eq. 9). Scalar; 0 for no pair, with a gradient path."""
    if not len(alike_NN):  # every rank goes back through the same modules
        return alike_NN.sum()
    own_N = torch.arange(len(alike_NN), device=alike_NN.device)
    return (F.cross_entropy(alike_NN, own_N) + F.cross_entropy(alike_NN.T, own_N)) / 2
