"""The loss of the trained tokens, value and gradient, 50 of an image's 626 positions: time against the two matrix
products that cannot be avoided, and time and peak memory against logits of all positions in fp32, as LLaVA makes them;
for vocabularies of 32k, 128k and 256k, the head frozen, bf16.

On a CPU the widths are 2048 and 1024: the narrower the model, the more of the time is not products. On a GPU they are
those of Vicuna 7B, Llama 3 8B and Gemma 2B, and eight images.

Letters: R images, S positions, N trained tokens, D width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.llms.head import nll

from . import Pairs, in_turn
from ._work import clock, timed

TARGET = 1.25  # times the two products
NAIVE = 0.25  # of the time of all positions' logits
MEMORY = 0.15  # of their memory
POSITIONS, TRAINED = 626, 50
SIZES = {"cpu": [(2, 32_000, 2048, 15), (1, 128_256, 1024, 15), (1, 256_000, 1024, 9)],
         "cuda": [(8, 32_000, 4096, 20), (8, 128_256, 4096, 20), (8, 256_000, 2048, 20)]}  # fmt: skip


def measure() -> dict[str, Pairs]:
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, Pairs] = {}
    for images, vocab, dim, times in SIZES[device]:
        given, size = Given.drawn(images, vocab, dim, device), f"lm loss {vocab // 1000}k"
        found[f"{size} / products"] = alone = in_turn(given.ours, given.products, times, clock)
        (naive, most), (_, least) = timed(given.naive), timed(given.ours)
        found[f"{size} / all logits"] = Pairs(alone.ours, [naive], NAIVE)
        found[f"{size} / all logits, memory"] = Pairs([least], [most], MEMORY, "MiB")
    return found


@dataclass
class Given:
    """Final hidden states, token ids of which the last of each image are trained, and a head."""

    hidden_RSD: Tensor
    ids_RS: Tensor
    embed_VD: Tensor

    @classmethod
    def drawn(cls, images: int, vocab: int, dim: int, device: str) -> "Given":
        g = torch.Generator(device).manual_seed(0)
        ids_RS = torch.randint(vocab, (images, POSITIONS), generator=g, device=device)
        hidden_RSD = torch.randn(images, POSITIONS, dim, generator=g, device=device).bfloat16().requires_grad_()
        embed_VD = (torch.randn(vocab, dim, generator=g, device=device) / dim**0.5).bfloat16()
        return cls(hidden_RSD, ids_RS, embed_VD)

    def ours(self) -> None:
        self.hidden_RSD.grad = None
        rows_ND = self.hidden_RSD[:, -TRAINED - 1 : -1].flatten(0, 1)
        token_N = self.ids_RS[:, -TRAINED:].flatten()
        loss = nll(rows_ND, self.embed_VD, token_N, torch.ones(len(token_N), device=token_N.device))
        (loss / len(token_N)).backward()

    def naive(self) -> None:
        """Logits of all positions, made fp32, shifted, those without a label left out by cross_entropy itself."""
        self.hidden_RSD.grad = None
        logits_RSV = (self.hidden_RSD @ self.embed_VD.T).float()
        labels_RS = self.ids_RS.clone()
        labels_RS[:, :-TRAINED] = -100
        shifted = logits_RSV[:, :-1].contiguous().view(-1, len(self.embed_VD))
        F.cross_entropy(shifted, labels_RS[:, 1:].flatten()).backward()

    def products(self) -> None:
        """The logits of the trained rows, and the rows' gradient."""
        with torch.no_grad():
            rows_ND = self.hidden_RSD[:, -TRAINED - 1 : -1].flatten(0, 1)
            torch.mm(torch.mm(rows_ND, self.embed_VD.T), self.embed_VD)
