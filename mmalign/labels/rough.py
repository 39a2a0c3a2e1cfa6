"""Scores of all words that are fast to make, and how far each may be from the word's own.

Letters: N patches, W words, J width of the joint space. A patch and a word are unit vectors; what is ranked is
sign * (f.t - m), m the word's mean.

In bf16, words stand without their common direction: f.(t - mu) orders them as f.t does, and a bank that lies on a cone
then rounds to half the error. The error is bounded by what was rounded off (Cauchy-Schwarz), not guessed. In fp32 it is
what a sum of J products may lose.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

BLOCK = 64  # words whose maximum is taken first; room for scores is a multiple of it wide
ALIGN = 32  # columns of the factors; thin tails slow the product down
HALF_ULP = 2.0**-8  # of a bf16 number, relative, with room for the order of summation


@dataclass
class Scores:
    """sign * (f.t - m) - shift of every word, and -inf beside them."""

    rough_NW: Tensor
    lost_N: Tensor  # none of a row is further from the true one,
    ulp: float  # but for this share of its own size
    shift_N: Tensor

    def above(self, last_N: Tensor) -> Tensor:
        """above_N: no word whose rough score is at most `last` has a true one above it, the shift added."""
        return last_N + self.ulp * last_N.abs() + self.lost_N + self.shift_N

    def of(self, row_R: Tensor) -> "Scores":
        """Those of some rows."""
        return Scores(self.rough_NW[row_R], self.lost_N[row_R], self.ulp, self.shift_N[row_R])


class Rough(Protocol):
    """All words, as they are multiplied."""

    MORE: int  # candidates beyond the K best; with fewer, many rows need a second pass
    dtype: torch.dtype  # of the scores

    def __init__(self, text_WJ: Tensor, mean_W: Tensor, sign: int) -> None: ...

    def into(self, patch_NJ: Tensor, rough_NW: Tensor) -> Scores:
        """The scores of all words, written into this room."""


class Half:
    """A product in bf16; of scores in bf16, but on CUDA in fp32."""

    MORE = 14

    def __init__(self, text_WJ: Tensor, mean_W: Tensor, sign: int) -> None:
        self.words, self.mean, self.sign = len(text_WJ), mean_W.mean(), sign
        self.centre_J = text_WJ.mean(0)
        self.dtype = torch.float32 if text_WJ.is_cuda else torch.bfloat16
        exact_WJ = sign * (text_WJ - self.centre_J)
        rough_WJ = exact_WJ.bfloat16()  # then, if any, -sign * mean in three columns, then zeros
        if bool(mean_W.any()):
            rough_WJ = torch.cat([rough_WJ, _parts(-sign * (mean_W - self.mean))], 1)
        self.rough_WJ = torch.nn.functional.pad(rough_WJ, (0, -rough_WJ.shape[1] % ALIGN, 0, -self.words % BLOCK))
        self.length = exact_WJ.norm(dim=1).max()
        self.lost = (exact_WJ - rough_WJ[:, : exact_WJ.shape[1]].float()).norm(dim=1).max()  # in rounding

    def into(self, patch_NJ: Tensor, rough_NW: Tensor) -> Scores:
        half_NJ = patch_NJ.bfloat16()
        wide_NJ = torch.nn.functional.pad(half_NJ, (0, self.rough_WJ.shape[1] - half_NJ.shape[1]))
        wide_NJ[:, patch_NJ.shape[1] : patch_NJ.shape[1] + 3] = 1  # times what is taken off, or times padding
        lost_N = (patch_NJ - half_NJ.float()).norm(dim=1) * self.length + half_NJ.float().norm(dim=1) * self.lost
        more = {"out_dtype": torch.float32} if patch_NJ.is_cuda else {}
        torch.mm(wide_NJ, self.rough_WJ.T, out=rough_NW, **more)
        rough_NW[:, self.words :] = -torch.inf
        # what both centrings took off is the same for every word of a row
        return Scores(rough_NW, lost_N, HALF_ULP, self.sign * (patch_NJ @ self.centre_J - self.mean))


class Full:
    """A product in fp32, of the words as they are: no copy is made of them."""

    MORE = 4
    dtype = torch.float32

    def __init__(self, text_WJ: Tensor, mean_W: Tensor, sign: int) -> None:
        self.text_WJ, self.sign = text_WJ, sign
        self.mean_W = sign * mean_W if bool(mean_W.any()) else None
        # a sum of J products loses at most J half ulps of the sum of their sizes, which is at most 1; so does the sum
        # that it is held against, and the means are rounded, too
        self.lost = (text_WJ.shape[1] + 2) * torch.finfo(torch.float32).eps

    def into(self, patch_NJ: Tensor, rough_NW: Tensor) -> Scores:
        words = len(self.text_WJ)
        torch.mm(self.sign * patch_NJ, self.text_WJ.T, out=rough_NW[:, :words])
        if self.mean_W is not None:
            rough_NW[:, :words] -= self.mean_W
        rough_NW[:, words:] = -torch.inf
        lost_N = torch.full_like(patch_NJ[:, 0], self.lost)
        return Scores(rough_NW, lost_N, 0.0, torch.zeros_like(lost_N))


def _parts(value_W: Tensor) -> Tensor:
    """fp32 numbers as sums of three bf16 ones: all but exact."""
    parts = []
    for _ in range(3):
        parts.append(value_W.bfloat16())
        value_W = value_W - parts[-1].float()
    return torch.stack(parts, 1)
