"""What objectives share that are after an encoder's features: which tokens have a target, how far off they are, and
the layers from the language model's width to the encoder's."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.errors import CheckError
from mmalign.llms.rows import wide
from mmalign.objectives import Context, Objective, Step, per_image

GAPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of rows over their width
    "cosine": lambda ours, theirs: 1 - F.cosine_similarity(ours, theirs, dim=-1),
    "l2": lambda ours, theirs: (ours - theirs).square().mean(-1),
    "smooth-l1": lambda ours, theirs: F.smooth_l1_loss(ours, theirs, reduction="none").mean(-1),
}


def mean_gap(predicted_BPC: Tensor, target_BPC: Tensor, counted_BP: Tensor | None, distance: str) -> Tensor:
    """Mean over images of the mean distance over the tokens of each that count. Scalar, fp32 (fp64 from fp64).

    counted_BP: None: all. 0 without images, or for an image of which nothing counts. Gradients reach both. Raises
    CheckError where shapes do not fit.
    """
    shape = tuple(target_BPC.shape)
    counted_BP = torch.ones(shape[:2], device=target_BPC.device) if counted_BP is None else counted_BP
    if len(shape) != 3 or tuple(predicted_BPC.shape) != shape or tuple(counted_BP.shape) != shape[:2]:
        what = f"predictions have the shape {tuple(predicted_BPC.shape)}, features {shape}, which count"
        raise CheckError(f"{what} {tuple(counted_BP.shape)}", at="args.predicted_BPC", fix="images x tokens x width")
    gap_BP = GAPS[distance](wide(predicted_BPC), wide(target_BPC))
    return (gap_BP * per_image(counted_BP.to(gap_BP.dtype))).sum()


def goals(objective: Objective, step: Step) -> tuple[Tensor, Tensor]:
    """target_BPC of an objective's encoder, and counted_BP: which tokens have one, and count themselves."""
    targets = step.targets[objective.encoders[0]]
    return targets.features_BPC, targets.known_BP & step.counted_BP


def projector(width: int, out: int, context: Context) -> nn.Sequential:
    """Three linear layers with SiLU between them, from the language model's width through `width` to `out`."""
    sizes = [context.dim, width, width, out]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after, device=context.device, dtype=context.dtype), nn.SiLU()]
    return nn.Sequential(*layers[:-1])
