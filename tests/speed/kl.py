"""The vocabulary KL (BASIC, eq. 7), value and gradient: time against its three matrix products, and against naive
autograd, for vocabularies of 32k, 128k and 256k; peak memory against naive autograd, and of four images against one.

On a CPU the width is 768 and numbers are fp32, so that the whole ends in two minutes; the narrower the model, the more
of the time is not products. On a GPU: the widths of Vicuna 7B, Llama 3 8B and Gemma 2B, bf16, four images.

Letters: M rows (patches), D width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign.llms.vocabulary import vocabulary_kl

from . import Pairs, seconds
from ._work import clock, peak, timed

TARGET = 1.5  # times the three products
NAIVE = 1.0  # times naive autograd
MEMORY = {1: 0.5, 2: 0.25}  # of naive autograd's, by images: ours holds the same for any number
GROWTH = 1.1  # from one image to four: the gradient grows, nothing else
PATCHES = 576  # of an image: CLIP ViT-L at 336 pixels
SIZES = {"cpu": [(32_000, 768, 3), (128_256, 768, 1), (256_000, 768, 1)],
         "cuda": [(32_000, 4096, 20), (128_256, 4096, 20), (256_000, 2048, 20)]}  # fmt: skip


def measure() -> dict[str, Pairs]:
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = 4 if device == "cuda" else 1
    found: dict[str, Pairs] = {}
    for vocab, dim, times in SIZES[device]:
        given, size = Rows.drawn(images * PATCHES, dim, vocab, device), f"kl {vocab // 1000}k x {dim}"
        products = given.products()
        taken = [(timed(given.ours), seconds(products, clock), timed(given.naive)) for _ in range(times)]
        ours, limit, naive = (list(column) for column in zip(*taken, strict=True))
        found[f"{size} / products"] = Pairs([t for t, _ in ours], limit)
        found[f"{size} / naive"] = Pairs([t for t, _ in ours], [t for t, _ in naive], NAIVE)
        found[f"{size} / naive, memory"] = Pairs([m for _, m in ours], [m for _, m in naive], MEMORY[1], "MiB")
    one, two, four = (Rows.drawn(n * images * PATCHES, 512, 32_000, device) for n in (1, 2, 4))
    found["kl 2 images / naive, memory"] = Pairs([peak(two.ours)], [peak(two.naive)], MEMORY[2], "MiB")
    found["kl 4 images / 1, memory"] = Pairs([peak(four.ours)], [peak(one.ours)], GROWTH, "MiB")
    return found


@dataclass
class Rows:
    """Tokens, their targets, how much each counts, and a vocabulary."""

    visual_MD: Tensor
    target_MD: Tensor
    weight_M: Tensor
    embed_VD: Tensor

    @classmethod
    def drawn(cls, rows: int, dim: int, vocab: int, device: str) -> "Rows":
        g = torch.Generator(device).manual_seed(0)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        made = [torch.randn(size, dim, generator=g, device=device).to(dtype) for size in (rows, rows, vocab)]
        return cls(made[0].requires_grad_(), made[1], torch.full((rows,), 1 / rows, device=device), made[2] / dim**0.5)

    def ours(self) -> None:
        self.visual_MD.grad = None
        vocabulary_kl(self.visual_MD, self.target_MD, self.weight_M, self.embed_VD).backward()

    def naive(self) -> None:
        """The definition, all rows at once, by autograd."""
        self.visual_MD.grad = None
        p_MV = (self.target_MD @ self.embed_VD.T).float().softmax(-1)
        log_q_MV = (self.visual_MD @ self.embed_VD.T).float().log_softmax(-1)
        kl_M = torch.nn.functional.kl_div(log_q_MV, p_MV, reduction="none").sum(-1)
        (self.weight_M * kl_M).sum().backward()

    def products(self) -> Callable[[], None]:
        """Both logits and the gradient, into memory that is there already."""
        own_MD, embed_VD = self.visual_MD.detach(), self.embed_VD
        logits_MV, grad_MD = own_MD @ embed_VD.T, torch.empty_like(own_MD)

        def run() -> None:
            torch.mm(own_MD, embed_VD.T, out=logits_MV)
            torch.mm(self.target_MD, embed_VD.T, out=logits_MV)
            torch.mm(logits_MV, embed_VD, out=grad_MD)

        return run
