"""Emu: what the language model makes of a visual token regresses the next one (arXiv 2307.05222, section 2.2)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.errors import CheckError, one_of
from mmalign.llms.rows import wide
from mmalign.objectives import Context, Objective, Step, per_image

DISTANCES = ("l2", "cosine")


def next_embedding_loss(
    predicted_BQD: Tensor, tokens_BQD: Tensor, counted_BQ: Tensor | None = None, *, distance: str = "l2"
) -> Tensor:
    """Regress each visual token but an image's first from what stands before it: Emu (arXiv 2307.05222, section 2.2).

    predicted_BQD: at visual token i, what is expected of token i + 1. tokens_BQD: the visual tokens. counted_BQ: which
    tokens are predicted; None: all. distance: l2, squared and the mean over the width; cosine, 1 - cos.

    Mean over images of the mean over their predicted tokens. Scalar, fp32 (fp64 from fp64); 0 without images, or for an
    image of which nothing is predicted. Gradients reach both. Raises CheckError where shapes do not fit.
    """
    one_of("distance", distance, DISTANCES)
    shape = tuple(tokens_BQD.shape)
    counted_BQ = torch.ones(shape[:2], device=tokens_BQD.device) if counted_BQ is None else counted_BQ
    if len(shape) != 3 or tuple(predicted_BQD.shape) != shape or tuple(counted_BQ.shape) != shape[:2]:
        what = f"predictions have the shape {tuple(predicted_BQD.shape)}, visual tokens {shape}, which count"
        raise CheckError(f"{what} {tuple(counted_BQ.shape)}", at="args.predicted_BQD", fix="images x tokens x width")
    ahead_BND, next_BND = wide(predicted_BQD[:, :-1]), wide(tokens_BQD[:, 1:])
    if distance == "l2":
        gap_BN = (ahead_BND - next_BND).square().mean(-1)
    else:
        gap_BN = 1 - F.cosine_similarity(ahead_BND, next_BND, dim=-1)
    return (gap_BN * per_image(counted_BQ[:, 1:].to(gap_BN.dtype))).sum()


class NextEmbedding(Objective):
    """The language model's output at a visual token, through a linear layer of its own, regresses the next token.

    Followed of the paper: l2 regression of the next embedding, beside the classification of the next word; of its
    published code, which has no training: the layer, square, without bias. What neither told us is our choice: the mean
    over the width, not the sum, so that the weight does not depend on it; a constant target. Not here: Emu also
    predicts the first token, from the mark in front of an image; and its visual tokens come out of a causal
    transformer, while an adapter's token may know of the tokens behind it.

    Tokens of patches that show no picture are not predicted.

    distance: l2 (the paper), or cosine, 1 - cos, which leaves lengths alone (not in the paper). target: constant, no
    gradient reaches the token that is predicted (not known of the paper); learned, it does, and tokens that are all the
    same are a solution.
    """

    needs = frozenset({"states"})
    collective = True  # ZeRO-3 gathers the layer from all ranks

    def __init__(
        self, distance: Literal["l2", "cosine"] = "l2", target: Literal["constant", "learned"] = "constant"
    ) -> None:
        super().__init__()
        one_of("distance", distance, DISTANCES)
        one_of("target", target, ("constant", "learned"))
        self.distance, self.target = distance, target
        self.regress: nn.Linear | None = None

    def prepare(self, context: Context) -> None:
        self.state_layers = (context.layers,)
        if self.regress is None:
            own = nn.Linear(context.dim, context.dim, bias=False, device=context.device, dtype=context.dtype)
            self.regress = own

    def forward(self, step: Step) -> Tensor:
        """Mean over images of the mean distance over their tokens but the first. Scalar, fp32."""
        assert self.regress is not None, "prepare first"
        hidden_BQD = step.states[self.state_layers[0]]
        predicted_BQD = self.regress(hidden_BQD.to(self.regress.weight.dtype))
        tokens_BQD = step.visual_BPD.detach() if self.target == "constant" else step.visual_BPD
        return next_embedding_loss(predicted_BQD, tokens_BQD, step.counted_BP, distance=self.distance)
