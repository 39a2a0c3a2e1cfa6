"""`python -m tests.toyworld.dense_kinds`: which dense features of the toy CLIP say what a patch shows.

For plain, value and surgery, both signs, without and with each word's mean taken off: the share of patches whose best
word is true of them, of object patches, of background patches, and of both; patches that show something of two are left
out.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.io.wordlist import read_words
from mmalign.toyworld.data import Scenes
from mmalign.vision.dense import DENSE, Dense
from mmalign.vision.hf import HFVision

IMAGES = 300  # of the split that nothing is trained on


@dataclass(frozen=True)
class Right:
    """Shares of patches whose best word is true of them."""

    object: float
    background: float
    all: float


@cache
def cosines(dense: Dense, images: int) -> tuple[Tensor, list[list[tuple[bool | None, tuple[str, ...]]]]]:
    """cosine_BPW, and of each patch whether it shows an object (None: neither it nor background), and what is true."""
    vision = HFVision("pkg:mmalign.toyworld/clip", dense=dense).float().eval()
    scenes = Scenes("eval", seed=0)
    pictures = [scenes.image(number) for number in range(images)]
    text_WJ = vision.words(read_words(WORDS))
    with torch.no_grad():
        _, dense_BPJ = vision.both(torch.stack([vision.pixels(picture) for picture in pictures]))
    truths = [scenes.truth(number, vision.frame(picture.size)) for number, picture in enumerate(pictures)]
    told = [list(zip(truth.object or [], truth.words, strict=True)) for truth in truths]
    return F.normalize(dense_BPJ, dim=-1) @ text_WJ.T, told


WORDS = "pkg:mmalign.toyworld/words/clean.txt"


def right(dense: Dense, sign: int, centred: bool, images: int = IMAGES) -> Right:
    cosine_BPW, told = cosines(dense, images)
    mean_W = cosine_BPW.mean((0, 1)) * centred
    best = (sign * (cosine_BPW - mean_W)).argmax(-1).tolist()
    words = read_words(WORDS)
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for numbers, patches in zip(best, told, strict=True):
        for number, (is_object, true) in zip(numbers, patches, strict=True):
            if is_object is not None:
                hits[is_object].append(words[number] in true)
    share = [sum(some) / len(some) for some in (hits[True], hits[False], hits[True] + hits[False])]
    return Right(*share)


def main() -> None:
    print(f"{'dense':<10}{'sign':>5}{'centred':>9}{'object':>9}{'backgr.':>9}{'all':>9}")
    for dense in DENSE:
        for sign in (1, -1):
            for centred in (False, True):
                found = right(dense, sign, centred)
                shares = "".join(f"{share:>9.3f}" for share in (found.object, found.background, found.all))
                print(f"{dense:<10}{sign:>+5}{'yes' if centred else 'no':>9}{shares}")


if __name__ == "__main__":
    main()
