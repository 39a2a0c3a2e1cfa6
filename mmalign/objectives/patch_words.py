"""Patch-aligned training: each visual token towards the embeddings of its patch's words (arXiv 2505.17316).

Letters beside the family's: T pieces of a word, U different pieces of a pass, R patches at a time.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.llms.rows import wide
from mmalign.objectives import Objective, Step
from mmalign.objectives.labelled import shares

LIMIT = 16 << 20  # bytes of the embeddings of some patches' words at a time


def patch_words_loss(tokens_ND: Tensor, embed_UD: Tensor, piece_NKT: Tensor, share_NK: Tensor) -> Tensor:
    """Sum over patches and their words of share * (1 - cos(token, word)).

    tokens_ND: visual tokens. embed_UD: embeddings of the pieces that words have, a constant. piece_NKT: of each word of
    a patch the rows of embed_UD whose mean it is, padded with -1. share_NK: how much each counts, a constant. Scalar,
    fp32 (fp64 from fp64); 0 without patches. Of patches x words x width only so many bytes as LIMIT are held.
    """
    if not len(tokens_ND):
        return wide(tokens_ND).sum()
    share_NK = share_NK.to(wide(tokens_ND[:0]).dtype)
    target_ND = _targets(embed_UD, piece_NKT, share_NK)
    return share_NK.sum() - (F.normalize(wide(tokens_ND), dim=-1) * target_ND).sum()


@torch.no_grad()
def _targets(embed_UD: Tensor, piece_NKT: Tensor, share_NK: Tensor) -> Tensor:
    """target_ND: the sum of a patch's words, unit vectors, each times its share: a token's unit vector meets them all
    alike."""
    words, pieces = piece_NKT.shape[1:]
    size = max(1, LIMIT // (4 * words * pieces * embed_UD.shape[1]))
    parts = []
    for piece_RKT, share_RK in zip(torch.split(piece_NKT, size), torch.split(share_NK, size), strict=True):
        real_RKT1 = (piece_RKT >= 0)[..., None]
        piece_RKTD = wide(embed_UD[piece_RKT.clamp(min=0)]) * real_RKT1
        word_RKD = F.normalize(piece_RKTD.sum(2), dim=-1)  # the mean has the same direction
        parts.append((word_RKD * share_RK[..., None]).sum(1))
    return torch.cat(parts)


class PatchWords(Objective):
    """Turn each visual token towards the words that its patch shows, with no negatives (arXiv 2505.17316).

    As we read the paper, it turns a visual token, as the projector makes it, towards the language model's embedding
    of what a mask over its patch is called, by the cosine; of a name of several pieces the mean. Its code is not
    published, and how it weighs masks and patches is not followed. Here a patch has words with scores, and each counts
    in proportion to its score. Words are constants: the paper trains the projector with a frozen language model. SEA,
    with the same labels, also contrasts tokens with the words of other patches, and takes one patch of a window and one
    word of it.
    """

    needs = frozenset({"labels"})
    per_patch = True
    collective = True  # ZeRO-3 gathers the words' embeddings from all ranks

    def forward(self, step: Step) -> Tensor:
        """Mean over images of the mean over their patches with words of 1 - cos. Scalar, fp32."""
        share_NK, words_NK, patch_N = shares(step, *step.visual_BPD.shape[:2])
        piece_NKT = step.words.pieces_WT.to(words_NK.device)[words_NK]
        token_U, row_NKT = torch.unique(piece_NKT.clamp(min=0), return_inverse=True)
        with torch.no_grad():
            embed_UD = step.words.embed(token_U)
        row_NKT = row_NKT.masked_fill(piece_NKT < 0, -1)
        return patch_words_loss(step.visual_BPD.flatten(0, 1)[patch_N], embed_UD, row_NKT, share_NK)
