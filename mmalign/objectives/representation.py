"""VIRAL: a layer's states at the visual tokens are turned towards another encoder's features (arXiv 2509.07979)."""

from typing import Literal

from torch import Tensor, nn

from mmalign.errors import one_of
from mmalign.io import bounds
from mmalign.objectives import Context, Layer, Objective, Step, numbered
from mmalign.objectives.features import goals, mean_gap, projector
from mmalign.vision import Vision

DISTANCES = ("cosine", "smooth-l1")


def representation_loss(
    projected_BPC: Tensor, features_BPC: Tensor, counted_BP: Tensor | None = None, *, distance: str = "cosine"
) -> Tensor:
    """How far projected states are from the features of the same patches: VIRAL (arXiv 2509.07979), its L_VRA + 1.

    projected_BPC: hidden states at the visual tokens, projected to the encoder's width. features_BPC: a frozen
    encoder's. counted_BP: which tokens have a feature; None: all. distance: cosine, 1 - cos; smooth-l1, the mean over
    the width, as OLA-VLM (arXiv 2412.09585).

    Mean over images of the mean over their tokens that count. Scalar, fp32 (fp64 from fp64); 0 without images, or for
    an image of which nothing counts. Gradients reach both. Raises CheckError where shapes do not fit.
    """
    one_of("distance", distance, DISTANCES)
    return mean_gap(projected_BPC, features_BPC, counted_BP, distance)


class Representation(Objective):
    """One layer's states at the visual tokens, through a projector of its own, are turned towards the features that a
    frozen encoder has of the same patches: VIRAL (arXiv 2509.07979).

    Followed of its published code: layer 16 of 32, counted like `hidden_states`; a projector of three linear layers
    with SiLU, 2048 wide; cosine to normed patch features; beside `lm` with weight 0.5. The code's loss is -cos, ours
    1 - cos, which is as steep and ends at 0. Its encoder is DINOv2's ViT-B, a card by the name of timm-dinov2-b; the
    card here names its ViT-L. Ours alone: tokens of padding, which the code counts, have no target; pictures are
    prepared as the encoder's card says, where the code gives it the model's own pixels; an encoder of another grid is
    read at each token's centre.

    With distance smooth-l1 it is a small form of OLA-VLM's embedding distillation (arXiv 2412.09585): token by token.
    Not here: its resampler heads with learnt queries, its contrastive term, its extra tokens, several layers and
    encoders at once, and its depth and generation encoders.

    encoder: whose features, a vision card. layer: whose states, from 0, the visual tokens themselves, to the language
    model's depth; last, behind the final norm; None: half the depth (the paper: 16 of 32). width: of the projector (the
    paper's code: 2048). distance: cosine (the paper), or smooth-l1 (OLA-VLM's).
    """

    needs = frozenset({"states", "targets"})
    per_patch = True
    collective = True  # ZeRO-3 gathers the projector from all ranks
    bounds = {"width": {"least": 1, "whole": True, "words": "a width of 1 or more", "example": 2048}}

    def __init__(
        self,
        encoder: Vision,
        layer: Layer | None = None,
        width: int = 2048,
        distance: Literal["cosine", "smooth-l1"] = "cosine",
    ) -> None:
        super().__init__()
        one_of("distance", distance, DISTANCES)
        bounds.check(self.bounds, width=width)
        self.encoders, self.layer, self.width, self.distance = (encoder,), layer, width, distance
        self.project: nn.Sequential | None = None

    def prepare(self, context: Context) -> None:
        depth = context.layers
        self.state_layers = (depth // 2 if self.layer is None else numbered(self.layer, depth),)
        if self.project is None:
            self.project = projector(self.width, self.encoders[0].dim, context)

    def forward(self, step: Step) -> Tensor:
        """Mean over images of the mean distance over their tokens with a feature. Scalar, fp32."""
        assert self.project is not None, "prepare first"
        features_BPC, counted_BP = goals(self, step)
        hidden_BPD = step.states[self.state_layers[0]]
        projected_BPC = self.project(hidden_BPD.to(next(self.project.parameters()).dtype))
        return representation_loss(projected_BPC, features_BPC, counted_BP, distance=self.distance)
