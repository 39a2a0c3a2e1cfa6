"""The words nearest to each patch, in the joint space of a vision encoder and its text tower (SEA, section 4.1)."""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import CheckError, DataError, one_of
from mmalign.io.wordlist import firsts, read_words
from mmalign.labels import LabelSource, Sample
from mmalign.labels.bank import text_bank
from mmalign.labels.rank import Bank
from mmalign.vision import Vision

LOOK = 256  # images that decide the sign
MARGIN = 0.02  # the signs must differ by this share of patches, else it is not decided


class NearestWords(LabelSource):
    """Cosine similarity of dense features and words, the best `keep` of them (eq. 4 to 6).

    encoder: the vision encoder whose joint space is used. words: see `read_words`. keep: n.
    sign: +1, or -1 where an encoder's patch-text similarity is inverted (the paper negates it for CLIP); auto: the one
    whose best words occur more often in the images' own captions.
    center: take each word's mean similarity over this many images of the data off first (0: never, the paper), so
    that a score above 0 says `more than elsewhere`; without it cosines on a cone are all above 0.
    templates: see `text_bank`. vocabulary: captions keeps only the words that some caption of the data uses.
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
        numbers = firsts(self.words)
        self.number_W = torch.tensor(list(numbers.values()))
        text_WJ = text_bank(self.encoder, list(numbers), self.templates)
        mean_W = mean_similarity(text_WJ, [dense_PJ for dense_PJ, _ in images[: self.center]])
        if self.center:
            decisions["centred on"] = f"{min(self.center, len(images))} images"
        if self.sign == "auto":
            self.sign, why = decided(list(numbers), {s: Bank.of(text_WJ, mean_W, s) for s in (1, -1)}, images)
            decisions["sign"] = f"{self.sign:+d} ({why})"
        self.bank = Bank.of(text_WJ, mean_W, int(self.sign))
        return decisions

    def _looked_at(self, sample: Sample) -> Sequence[tuple[Tensor, str]]:
        """(dense_PJ, caption) of the images that decide the mean and the sign; fewer than wanted where there are not
        so many."""
        images = sample(max(self.center, LOOK if self.sign == "auto" else 0))
        if self.center and not images:
            what = f"center is {self.center} images, and none can be read to take the words' mean over"
            raise DataError(what, at="args.center", fix="center: 0, or data with images")
        if self.sign == "auto" and not any(tokens(caption) for _, caption in images):
            what = f"sign auto is decided by captions, and none of {len(images)} images has one"
            raise DataError(what, at="args.sign", fix="sign: 1 or sign: -1, or data with captions")
        return images

    @torch.no_grad()
    def label(self, dense_NJ: Tensor) -> tuple[Tensor, Tensor]:
        assert self.bank is not None, "prepare first"
        words_NK, scores_NK = self.bank.best(F.normalize(dense_NJ.float(), dim=-1), self.keep)
        return self.number_W[words_NK], scores_NK

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


def tokens(caption: str) -> set[str]:
    return set(re.findall(r"[^\W_]+(?:['-][^\W_]+)*", caption.lower()))


@torch.no_grad()
def decided(words: Sequence[str], banks: dict[int, Bank], images: Sequence[tuple[Tensor, str]]) -> tuple[int, str]:
    """The sign under which a patch's best word is in its image's caption more often, and both shares."""
    agree = {1: 0, -1: 0}
    patches = 0
    for dense_PJ, caption in images:
        said = tokens(caption)
        for sign, bank in banks.items():
            best_P1, _ = bank.best(F.normalize(dense_PJ.float(), dim=-1), 1)
            agree[sign] += sum(words[number].lower() in said for number in best_P1[:, 0].tolist())
        patches += len(dense_PJ)
    share = {sign: count / max(1, patches) for sign, count in agree.items()}
    why = f"the best word is in the caption for {share[1]:.1%} of patches with +1, {share[-1]:.1%} with -1"
    if abs(share[1] - share[-1]) < MARGIN:
        fix = "sign: 1 or sign: -1; look at the labels (mmalign labels show)"
        raise DataError(f"sign auto is not decided: {why}", at="args.sign", fix=fix)
    return max(share, key=share.__getitem__), why
