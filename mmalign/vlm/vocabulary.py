"""The words nearest to a vector, among the language model's own: the one place where that is computed.

Letters: N vectors, D width of the language model, V its vocabulary, T of it that tokens have, K kept (top_k).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.llms import LLM

LIMIT = 256 << 20  # bytes of cosines at a time


@dataclass
class NearestTokens:
    """Rows of the input embedding matrix that belong to a token, as unit vectors, fp32.

    Rows behind the last token (padding of the matrix, ids that no token has) and the image mark's are left out: nobody
    trained them, so being near to one says nothing.
    """

    token_T: Tensor  # the ids of these rows
    unit_TD: Tensor

    @classmethod
    def of(cls, llm: LLM, embed_VD: Tensor) -> "NearestTokens":
        """embed_VD: the matrix of `llm`, whole (under ZeRO-3: gathered)."""
        used = sorted({i for i in llm.chat.tokenizer.get_vocab().values() if i < len(embed_VD)} - {llm.chat.mark})
        token_T = torch.tensor(used, device=embed_VD.device)
        return cls(token_T, F.normalize(embed_VD.detach()[token_T].float(), dim=-1))

    def __call__(self, vectors: Tensor, top_k: int = 1) -> tuple[Tensor, Tensor]:
        """(cosine, token) of shape (..., K) for vectors of shape (..., D), nearest first."""
        flat_ND = F.normalize(vectors.flatten(0, -2).float(), dim=-1).to(self.unit_TD.device)
        top_k = min(top_k, len(self.token_T))
        size = max(1, LIMIT // (4 * len(self.token_T)))
        best = [(part_ND @ self.unit_TD.T).topk(top_k, dim=-1) for part_ND in torch.split(flat_ND, size)]
        shape = (*vectors.shape[:-1], top_k)
        cosine_NK, row_NK = (torch.cat(parts).view(shape) for parts in zip(*best, strict=True))
        return cosine_NK, self.token_T[row_NK]


def spelled(tokenizer: Any, token: int) -> str:
    """A vocabulary token as text, without the mark of a word's inner piece."""
    text = str(tokenizer.decode([token])).strip()
    bare = text.removeprefix("##")
    return bare if bare.strip("#") else text or "␣"  # headings of Markdown, `##`, are words of other tokenizers
