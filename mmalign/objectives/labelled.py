"""The words of all patches of a pass as targets: how much each counts, and how it is spelled.

Letters beside the family's: T pieces of a word, J targets of a patch, the pieces of all its words.
"""

import torch
from torch import Tensor

from mmalign.llms.rows import wide
from mmalign.objectives import Step, per_image


def shares(step: Step, images: int, patches: int) -> tuple[Tensor, Tensor, Tensor]:
    """share_NK, how much each word of a patch counts; words_NK; and patch_N: of patches that have words, no padding.

    In proportion to the scores; over all patches of an image the sum is 1 / images. patch_N is counted through images.
    """
    every_N = torch.arange(images * patches, device=step.visual_BPD.device)
    words_NK, scores_NK = step.labels(every_N)
    scores_NK = wide(scores_NK).clamp(min=0) * step.counted_BP.flatten()[:, None]
    total_N1 = scores_NK.sum(1, keepdim=True)
    labelled_BP = (total_N1 > 0).view(images, patches)
    weight_N1 = per_image(labelled_BP.to(total_N1.dtype)).view(-1, 1)
    patch_N = every_N[labelled_BP.flatten()]
    return scores_NK[patch_N] / total_N1[patch_N] * weight_N1[patch_N], words_NK[patch_N], patch_N


def targets(step: Step, images: int, patches: int) -> tuple[Tensor, Tensor, Tensor]:
    """token_NJ, the pieces of a patch's words; weight_NJ, how much each counts; and patch_N, as for `shares`.

    The pieces of a word share what it counts equally; where there is none, what stands there counts 0.
    """
    share_NK, words_NK, patch_N = shares(step, images, patches)
    piece_NKT = step.words.pieces_WT.to(words_NK.device)[words_NK]
    real_NKT = piece_NKT >= 0
    weight_NKT = share_NK[..., None] * real_NKT / real_NKT.sum(-1, keepdim=True).clamp(min=1)
    return piece_NKT.clamp(min=0).flatten(1), weight_NKT.flatten(1), patch_N
