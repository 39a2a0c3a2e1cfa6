"""The words nearest to each patch, in the joint space of a vision encoder and its text tower (SEA, section 4.1)."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import CheckError, DataError, one_of
from mmalign.io.wordlist import firsts, read_words, tokens
from mmalign.labels import LabelSource, Sample
from mmalign.labels.bank import text_bank
from mmalign.labels.rank import Bank
from mmalign.labels.sign import LOOK, decided
from mmalign.vision import Vision


class NearestWords(LabelSource):
    """Cosine similarity of dense features and words, the best `keep` of them (eq. 4 to 6).

    encoder: the vision encoder whose joint space is used. words: a file with one a line (the paper: 2of12 and words of
    the captions). keep: n, the words of a patch (the paper: 10).
    sign: +1, or -1 where an encoder's patch-text similarity is inverted (the paper negates it for CLIP); auto: the one
    under which patches have the words of their own images' captions, see sign.py; Undecided where that does not tell.
    center: take each word's mean similarity over this many images of the data off first (0: never, the paper), so
    that a score above 0 says `more than elsewhere`; without it cosines on a cone are all above 0.
    templates: sentences that a word stands in as {}, whose mean is its embedding (the paper: the word alone).
    vocabulary: captions keeps only the words that some caption of the data uses; all, the whole list (the paper).

    Labels made while a model trains are those of a store where features are: an encoder of their own is in fp32 for
    both. The model's own encoder is in the precision it trains in: see tests/toyworld/label_precision.py for bf16's.
    """

    def __init__(
        self,
        encoder: Vision,
        words: str,
        keep: int,
        sign: int | Literal["auto"] = 1,
        center: int = 0,
        templates: Sequence[str] = ("{}",),
        vocabulary: Literal["all", "captions"] = "all",
    ) -> None:
        one_of("sign", sign, (1, -1, "auto"))
        one_of("vocabulary", vocabulary, ("all", "captions"))
        if center < 0:
            raise CheckError(f"center must be at least 0 images, got {center}", at="args.center")
        self.words, self.keep, self.sign, self.center = read_words(words), keep, sign, center
        self.encoder, self.templates, self.vocabulary = encoder, tuple(templates), vocabulary
        self.bank: Bank | None = None

    def prepare(self, captions: Callable[[], Iterable[str]], sample: Sample) -> dict[str, object]:
        """The words in use, the mean that is taken off, the sign; what was decided.

        Raises DataError where the data has no images or captions for what is asked of them.
        """
        decisions: dict[str, object] = {}
        if self.vocabulary == "captions":
            self.words = used(self.words, captions())
            decisions["words"] = len(self.words)
        images = self._looked_at(sample)
        if self.sign == "auto":  # before 41,242 words are encoded
            verdict = decided(self.words, self._text, images)
            self.sign, decisions["sign"] = int(verdict.sign or 0), verdict
        numbers = firsts(self.words)
        self.number_W = torch.tensor(list(numbers.values()))
        text_WJ = self._text(list(numbers))
        mean_W = mean_similarity(text_WJ, [dense_PJ for dense_PJ, _ in images[: self.center]])
        if self.center:
            decisions["centred on"] = f"{min(self.center, len(images))} images"
        self.bank = Bank.of(text_WJ, mean_W, int(self.sign))
        return decisions

    def _looked_at(self, sample: Sample) -> Sequence[tuple[Tensor, str]]:
        """(dense_PJ, caption) of the images that decide the mean and the sign; fewer than wanted where there are not
        so many."""
        images = sample(max(self.center, LOOK if self.sign == "auto" else 0))
        if self.center and not images:
            what = f"center is {self.center} images, and none can be read to take the words' mean over"
            raise DataError(what, at="args.center", fix="center: 0, or data with images")
        return images

    def _text(self, words: Sequence[str]) -> Tensor:
        return text_bank(self.encoder, words, self.templates)

    @torch.no_grad()
    def label(self, dense_NJ: Tensor) -> tuple[Tensor, Tensor]:
        """words_NK, and scores_NK as a store keeps them, in fp16: so both are drawn from alike."""
        assert self.bank is not None, "prepare first"
        words_NK, scores_NK = self.bank.best(F.normalize(dense_NJ.float(), dim=-1), self.keep)
        return self.number_W[words_NK], scores_NK.half().float()

    def to(self, device: torch.device) -> "NearestWords":
        assert self.bank is not None, "prepare first"
        self.bank, self.number_W = self.bank.to(device), self.number_W.to(device)
        return self

    def identity(self) -> str:
        words = hashlib.sha256("\n".join(self.words).encode()).hexdigest()[:12]
        settings = f"sign {self.sign:+}, center {self.center}, templates {list(self.templates)}"
        return f"{self.encoder.identity()}, words {words}, {settings}"


@torch.no_grad()
def mean_similarity(text_WJ: Tensor, dense: Sequence[Tensor]) -> Tensor:
    """mean_W: the mean cosine of each word with all patches: that with the mean patch."""
    if not dense:
        return torch.zeros(len(text_WJ), device=text_WJ.device)
    return text_WJ @ F.normalize(torch.cat(list(dense)).float(), dim=-1).double().mean(0).float()


def used(words: Sequence[str], captions: Iterable[str]) -> list[str]:
    """The words that occur in some caption; DataError when none does."""
    said = {token for caption in captions for token in tokens(caption)}
    kept = [word for word in words if word.lower() in said]
    if not kept:
        what = "no word of the list occurs in any caption" if said else "vocabulary captions, and there is no caption"
        raise DataError(what, at="args.vocabulary", fix="vocabulary: all, or another word list")
    return kept
