"""`python -m tests.toyworld.label_precision`: labels of an encoder in bf16 beside those of the same in fp32.

A store is made in fp32, and so are labels by an encoder that is not the model's. The model's own encoder labels in the
precision it trains in, from the pass that the step runs anyway. Shares of patches that keep their best word, and the
same words in any order; and of words that are kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from mmalign.io.wordlist import read_words
from mmalign.labels.rank import Bank
from mmalign.labels.words import mean_similarity
from mmalign.toyworld.data import Scenes
from mmalign.vision.hf import HFVision
from tests.speed.topn import cone
from tests.toyworld.dense_kinds import WORDS

IMAGES, KEEP = 100, 10


@dataclass(frozen=True)
class Kept:
    """Shares that bf16 leaves as they are in fp32."""

    best: float
    all: float
    words: float


def kept(bank: Bank, full_NJ: Tensor, half_NJ: Tensor, keep: int = KEEP) -> Kept:
    """Of the labels of patches in fp32 and in bf16."""
    rows = [bank.best(F.normalize(dense_NJ.float(), dim=-1), keep)[0].tolist() for dense_NJ in (full_NJ, half_NJ)]
    pairs = list(zip(*rows, strict=True))
    same = [len({*a} & {*b}) for a, b in pairs]
    count = len(pairs)
    return Kept(sum(a[0] == b[0] for a, b in pairs) / count, same.count(keep) / count, sum(same) / (keep * count))


@torch.no_grad()
def toy(images: int = IMAGES, keep: int = KEEP) -> Kept:
    """The toy CLIP and its clean word list, centred, as toy-words has them."""
    scenes, dense = Scenes("eval", seed=0), []
    for precision in (torch.float32, torch.bfloat16):
        vision = HFVision("pkg:mmalign.toyworld/clip").to(precision).eval()
        pixels_B3SS = torch.stack([vision.pixels(scenes.image(number)) for number in range(images)])
        dense.append(vision.both(pixels_B3SS)[1].flatten(0, 1))
    text_WJ = HFVision("pkg:mmalign.toyworld/clip").words(read_words(WORDS))
    return kept(Bank.of(text_WJ, mean_similarity(text_WJ, dense[:1])), *dense, keep)


@torch.no_grad()
def large() -> Kept:
    """CLIP ViT-L/336's shape with random weights, two pictures of noise, 41,242 random words around one direction."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                              image_size=336, patch_size=14, projection_dim=768)  # fmt: skip
    model, pixels_B3SS, dense = CLIPVisionModelWithProjection(config).eval(), torch.randn(2, 3, 336, 336), []
    for precision in (torch.float32, torch.bfloat16):
        model.to(precision)
        hidden_BTC = model.vision_model(pixels_B3SS.to(precision)).last_hidden_state[:, 1:]
        dense.append(model.visual_projection(model.vision_model.post_layernorm(hidden_BTC)).flatten(0, 1))
    return kept(Bank.of(cone(41_242)), *dense)


def main() -> None:
    print(f"{'encoder':<24}{'best word':>12}{'all ten':>12}{'words':>12}")
    for name, found in (("toy-clip", toy()), ("ViT-L/336, random", large())):
        print(f"{name:<24}{found.best:>12.3f}{found.all:>12.3f}{found.words:>12.3f}")


if __name__ == "__main__":
    main()
