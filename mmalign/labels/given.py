"""Labels the data itself gives: the words true of each patch (regions, segments); no encoder, no mistakes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmalign.io.wordlist import firsts, read_words
from mmalign.labels import LabelSource


class Given(LabelSource):
    """The data's own words for each patch, all with the score 1.

    words: the file that gives them their numbers, one word a line; not in the paper, whose data has no truth. keep: at
    most so many a patch (the paper keeps 10).
    """

    needs = "truth"

    def __init__(self, words: str, keep: int) -> None:
        self.words, self.keep = read_words(words), keep
        self._number = firsts(self.words)

    def given(self, truth: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """words_PK and scores_PK, fp32; words that are not in the list are left out."""
        words_PK = torch.zeros(len(truth), self.keep, dtype=torch.long)
        scores_PK = torch.zeros(len(truth), self.keep)
        for patch, words in enumerate(truth):
            known = [self._number[word] for word in words if word in self._number][: self.keep]
            words_PK[patch, : len(known)] = torch.tensor(known, dtype=torch.long)
            scores_PK[patch, : len(known)] = 1
        return words_PK, scores_PK

    def identity(self) -> str:
        return "given"
