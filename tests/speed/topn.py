"""The 10 best of 41,242 words for an image's 576 patches: against the matrix product alone, in bf16 where that is fast
and else in fp32, and against the plain way, an fp32 product and topk. The last row is memory: that of 8 images' patches
against that of one chunk of them.
"""

import torch
from torch.nn.functional import normalize

from mmalign.labels.rank import Bank
from mmalign.labels.throughput import half_is_fast

from . import Pairs, in_turn
from ._work import clock, peak

TARGET = 1.8
PLAIN = {True: 0.33, False: 0.95}  # of the plain way: with units for bf16, and without
WORDS, WIDTH, PATCHES, KEEP = 41_242, 768, 576, 10
TIMES = 9


def measure() -> dict[str, Pairs]:
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.no_grad():
        bank = Bank.of(cone(WORDS).to(device))
        patch_NJ = normalize(torch.randn(PATCHES, WIDTH, device=device), dim=-1)
        half = half_is_fast(bank.text_WJ.device)
        one_NJ, one_WJ = (each.to(torch.bfloat16 if half else torch.float32) for each in (patch_NJ, bank.text_WJ))
        found = {
            "topn": in_turn(lambda: bank.best(patch_NJ, KEEP), lambda: one_NJ @ one_WJ.T, TIMES, clock),
            "topn-plain": in_turn(
                lambda: bank.best(patch_NJ, KEEP), lambda: (patch_NJ @ bank.text_WJ.T).topk(KEEP, dim=1), TIMES, clock
            ),
            "topn-memory": Pairs(target=1.1, unit="MiB"),
        }
        found["topn-plain"].target = PLAIN[half]
        chunk = bank.rows
        for count, peaks in ((chunk, found["topn-memory"].reference), (8 * PATCHES, found["topn-memory"].ours)):
            many_NJ, bank.held = normalize(torch.randn(count, WIDTH, device=device), dim=-1), None
            peaks.append(float(peak(lambda: bank.best(many_NJ, KEEP))))  # noqa: B023
    return found


def cone(words: int, angle: float = 0.7, width: int = WIDTH) -> torch.Tensor:
    """text_WJ: unit vectors around a common direction, as text encoders give them."""
    random = torch.Generator().manual_seed(0)
    axis_J = normalize(torch.randn(width, generator=random), dim=0)
    return normalize(axis_J + angle * torch.randn(words, width, generator=random) / width**0.5, dim=-1)
