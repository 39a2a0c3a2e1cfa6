"""ROSS: from the language model's outputs at the visual tokens the picture is made again (arXiv 2410.09575).

Letters beside the family's: T steps of noise, F numbers that say which of them.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.errors import one_of
from mmalign.io import bounds
from mmalign.llms.rows import wide
from mmalign.objectives import Context, Objective, Step
from mmalign.objectives.features import goals, mean_gap, projector
from mmalign.vision import Vision

METHODS = ("denoise", "regression")
DISTANCES = ("l2", "cosine")
STEPS = 1000  # T, as ROSS's code
FREQUENCIES = 256  # F
BLOCKS = 3  # of the denoiser, as ROSS's code


def standardized(features_BPC: Tensor) -> Tensor:
    """Each patch's feature with mean 0 and variance 1 over its width, fp32 (fp64 from fp64); without weights."""
    features_BPC = wide(features_BPC)
    return F.layer_norm(features_BPC, features_BPC.shape[-1:])


def reconstruction_loss(
    predicted_BPC: Tensor, features_BPC: Tensor, counted_BP: Tensor | None = None, *, distance: str = "l2"
) -> Tensor:
    """Regress the features of the picture from the language model's outputs: ROSS's vanilla form (arXiv 2410.09575).

    predicted_BPC: of each visual token. features_BPC: what is regressed. counted_BP: which tokens have a feature; None:
    all. distance: l2, to standardized features, squared and the mean over the width; cosine, 1 - cos.

    Mean over images of the mean over their tokens that count. Scalar, fp32 (fp64 from fp64); 0 without images, or for
    an image of which nothing counts. Gradients reach the predictions. Raises CheckError where shapes do not fit.
    """
    one_of("distance", distance, DISTANCES)
    target_BPC = standardized(features_BPC) if distance == "l2" else features_BPC
    return mean_gap(predicted_BPC, target_BPC, counted_BP, distance)


def kept(steps: int = STEPS) -> Tensor:
    """kept_T, fp64: the share of a feature's variance that is left after each step of noise (arXiv 2102.09672, eq. 17).

    At each step at least a thousandth of it stays, as there.
    """
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    curve = torch.cos((time + 0.008) / 1.008 * math.pi / 2).square()
    return (curve[1:] / curve[:-1]).clamp(min=0.001).cumprod(0)


def denoising_loss(
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor],
    hidden_BPD: Tensor,
    features_BPC: Tensor,
    noise_BPC: Tensor,
    time_BP: Tensor,
    counted_BP: Tensor | None = None,
) -> Tensor:
    """Predict the noise in noisy features from the language model's outputs: ROSS (arXiv 2410.09575), its L_LMM^visual.

    denoise: (noisy_BPC, time_BP, hidden_BPD) -> the noise expected in it. hidden_BPD: the outputs. features_BPC: the
    picture's, standardized here. noise_BPC: normal. time_BP: how noisy each becomes, 0 to STEPS - 1. counted_BP: which
    tokens have a feature; None: all.

    Mean over images of the mean over their tokens that count of the mean square over the width. Scalar, fp32 (fp64 from
    fp64); 0 without images, or for an image of which nothing counts. Gradients reach outputs and denoiser. Raises
    CheckError where shapes do not fit.
    """
    clean_BPC = standardized(features_BPC)
    kept_BP1 = kept().to(clean_BPC)[time_BP][..., None]
    noisy_BPC = kept_BP1.sqrt() * clean_BPC + (1 - kept_BP1).sqrt() * noise_BPC
    return mean_gap(denoise(noisy_BPC, time_BP, hidden_BPD), noise_BPC, counted_BP, "l2")


class Denoiser(nn.Module):
    """The noise of each token's noisy feature, by itself: residual blocks of an MLP whose norms are shifted, scaled and
    gated by the token's output and how noisy it is (adaptive norm, as in arXiv 2406.11838)."""

    def __init__(self, width: int, out: int, context: Context) -> None:
        super().__init__()

        def linear(before: int, after: int) -> nn.Linear:
            return nn.Linear(before, after, device=context.device, dtype=context.dtype)

        self.enter, self.leave = linear(out, width), linear(width, out)
        self.time = nn.Sequential(linear(FREQUENCIES, width), nn.SiLU(), linear(width, width))
        self.condition = linear(context.dim, width)
        self.shapes = nn.ModuleList([linear(width, 3 * width) for _ in range(BLOCKS)])
        self.blocks = nn.ModuleList(
            [nn.Sequential(linear(width, width), nn.SiLU(), linear(width, width)) for _ in range(BLOCKS)]
        )
        self.last = linear(width, 2 * width)

    def forward(self, noisy_BPC: Tensor, time_BP: Tensor, hidden_BPD: Tensor) -> Tensor:
        dtype = self.enter.weight.dtype
        output_BPD = F.layer_norm(hidden_BPD.to(dtype), hidden_BPD.shape[-1:])
        about = F.silu(self.time(frequencies(time_BP).to(dtype)) + self.condition(output_BPD))
        inner = self.enter(noisy_BPC.to(dtype))
        for shape, block in zip(self.shapes, self.blocks, strict=True):
            shift, scale, gate = shape(about).chunk(3, -1)
            inner = inner + gate * block(_normed(inner) * (1 + scale) + shift)
        shift, scale = self.last(about).chunk(2, -1)
        noise_BPC: Tensor = self.leave(_normed(inner) * (1 + scale) + shift)
        return noise_BPC


def _normed(inner: Tensor) -> Tensor:
    return F.layer_norm(inner, inner.shape[-1:])


def frequencies(time_BP: Tensor) -> Tensor:
    """Cosines and sines of a time at FREQUENCIES / 2 paces, from 1 down to 1 / 10,000: (..., F), fp32."""
    half = FREQUENCIES // 2
    pace = torch.exp(-math.log(10_000) * torch.arange(half, device=time_BP.device) / half)
    angle = time_BP[..., None].float() * pace
    return torch.cat([angle.cos(), angle.sin()], -1)


class Reconstruction(Objective):
    """From the language model's output at each visual token, what a frozen encoder sees there is made again: ROSS
    (arXiv 2410.09575).

    Followed of the paper and its published code: last layer; the noise is predicted that was added to the target, by a
    cosine schedule of 1,000 steps and a small denoiser of 3 blocks, 1024 wide, which sees the output through a norm;
    or, vanilla, the target itself is regressed.

    Not followed: the paper's targets are latents of a VAE (FLUX's), and no card gives those; here they are an encoder's
    features, each standardized over its width, for they come in any scale. Its denoiser is a transformer whose tokens
    see each other; ours takes each by itself, so that an output has to say all of its own patch, and a time is drawn
    for each token, not for each picture. It repeats a picture with four draws; we do with one. Its denoiser starts with
    an output of 0, through which no gradient reaches the model at first; ours starts as drawn. Tokens of padding have
    no target. What vanilla regression goes through is not known to us; it is VIRAL's projector here.

    encoder: whose features, a vision card. method: denoise (the paper), or regression (its vanilla form). distance: of
    regression, l2 or cosine; which of them the paper takes, for what targets, was not known to us. width: of what
    stands between outputs and features (the paper's code: 1024).
    """

    needs = frozenset({"states", "targets"})
    per_patch = True
    collective = True  # ZeRO-3 gathers its layers from all ranks
    bounds = {"width": {"least": 1, "whole": True, "words": "a width of 1 or more", "example": 1024}}

    def __init__(
        self,
        encoder: Vision,
        method: Literal["denoise", "regression"] = "denoise",
        distance: Literal["l2", "cosine"] = "l2",
        width: int = 1024,
    ) -> None:
        super().__init__()
        one_of("method", method, METHODS)
        one_of("distance", distance, DISTANCES)
        bounds.check(self.bounds, width=width)
        self.encoders, self.method, self.distance, self.width = (encoder,), method, distance, width
        self.head: nn.Module | None = None

    def prepare(self, context: Context) -> None:
        self.state_layers = (context.layers,)
        if self.head is None:
            head = Denoiser if self.method == "denoise" else projector
            self.head = head(self.width, self.encoders[0].dim, context)

    def forward(self, step: Step) -> Tensor:
        """Mean over images of the mean over their tokens with a feature. Scalar, fp32."""
        assert self.head is not None, "prepare first"
        features_BPC, counted_BP = goals(self, step)
        hidden_BPD = step.states[self.state_layers[0]]
        if self.method == "regression":
            predicted_BPC = self.head(hidden_BPD.to(next(self.head.parameters()).dtype))
            return reconstruction_loss(predicted_BPC, features_BPC, counted_BP, distance=self.distance)
        draw = {"generator": step.random, "device": step.random.device}
        noise_BPC = torch.randn(features_BPC.shape, **draw).to(hidden_BPD.device)  # type: ignore[call-overload]
        time_BP = torch.randint(STEPS, counted_BP.shape, **draw).to(hidden_BPD.device)  # type: ignore[call-overload]
        return denoising_loss(self.head, hidden_BPD, features_BPC, noise_BPC, time_BP, counted_BP)
