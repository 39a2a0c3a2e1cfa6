"""Contrast whole images with whole captions, as CLIP does (arXiv 2103.00020, figure 3): a plain control of the others.

Letters beside the family's: N samples that have an image and a caption.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.errors import CheckError
from mmalign.llms.rows import wide
from mmalign.objectives import Context, Layer, Objective, Step, numbered
from mmalign.objectives.contrast import bounded, info_nce, similarities
from mmalign.objectives.sea import joined


def means(rows_MD: Tensor, sample_M: Tensor, weight_M: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """mean_ND of each sample's rows, fp32 (fp64 from fp64), and weight_N, how much it has of them; 0 where none."""
    rows_MD = wide(rows_MD)
    weight_M = weight_M.to(rows_MD.dtype)
    total_ND = rows_MD.new_zeros(samples, rows_MD.shape[1]).index_add(0, sample_M, rows_MD * weight_M[:, None])
    weight_N = weight_M.new_zeros(samples).index_add(0, sample_M, weight_M)
    return total_ND / weight_N.clamp(min=1)[:, None], weight_N


def sides(step: Step, layer: int) -> tuple[Tensor, Tensor]:
    """visual_ND and text_ND, unit vectors: of each sample with a caption the mean of its images' tokens, no padding,
    and that of its caption's."""
    hidden_BPD = step.states[layer]
    samples = int(step.sample_B.amax()) + 1 if len(step.sample_B) else 0
    sample_M = step.sample_B.repeat_interleave(hidden_BPD.shape[1])
    visual_ND, seen_N = means(hidden_BPD.flatten(0, 1), sample_M, step.counted_BP.flatten(), samples)
    text_ND, said_N = means(step.captions[layer], step.caption_M, torch.ones_like(step.caption_M), samples)
    both_N = (seen_N > 0) & (said_N > 0)
    return F.normalize(visual_ND[both_N], dim=-1), F.normalize(text_ND[both_N], dim=-1)


class CaptionContrast(Objective):
    """Contrast the mean of an image's visual tokens with the mean of its caption's, against the others of the pass.

    What is said of the picture is what is trained beside it, the answers of its sample; the images of one sample are
    one side together, since they have one caption. Samples with images and nothing trained are left out. Two captions
    that are the same count as each other's negatives, so data of short answers is no use here.

    layer: 0, the visual tokens and the words as they go into the language model; a deeper layer, or last, is of no
    paper: a caption stands behind its picture, and what a layer makes of it has seen the picture already. temperature:
    where the learnable temperature starts (CLIP's paper: 0.07). gather: contrast over all ranks' pairs, as CLIP's paper
    does, instead of those of one device, gradients included; the number of devices then changes the result.
    """

    needs = frozenset({"states", "captions"})
    collective = True  # ranks gather each other's pairs

    def __init__(self, layer: Layer = 0, temperature: float = 0.07, gather: bool = False) -> None:
        super().__init__()
        if temperature <= 0:
            raise CheckError(f"temperature must be above 0, got {temperature:g}", at="args.temperature")
        self.layer, self.gather = layer, gather
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))

    def prepare(self, context: Context) -> None:
        self.state_layers = (numbered(self.layer, context.layers),)
        self.gather = self.gather and context.distributed

    def forward(self, step: Step) -> Tensor:
        """Mean over the pairs of this pass, both directions; 0 for a single pair. Scalar, fp32."""
        visual_ND, text_ND = sides(step, self.state_layers[0])
        if self.gather:
            visual_ND, text_ND = joined(visual_ND), joined(text_ND)
        scale = bounded(self.log_scale)
        step.note("captions", len(visual_ND))
        step.note("caption_temperature", 1 / scale[0])
        return info_nce(similarities(visual_ND, text_ND, scale))
