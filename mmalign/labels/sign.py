"""Is a patch like the words it is near to, or like those it is far from? The sign of a similarity, decided by captions.

The paper negates the cosine for CLIP (SEA, arXiv 2408.11813, eq. 6); whether it has to be depends on the encoder and on
how its patches are taken from it. Captions decide: under the right sign a patch's best word is in its own image's
caption more often than in another's.

Letters: U different captions, P patches of the images that have one of them, W content words, J width of the joint
space, R draws of the test.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import DataError
from mmalign.io.wordlist import STOP, tokens

LOOK = 256  # images that decide the sign
LEVEL = 0.01  # of each test; a sign has to pass two
DRAWS, SEED = 10_000, 0  # of a test
COMMON = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)  # shares of captions; a word in more of them than such a share is left out
TOLD = 0.5  # share of captions in which the words that stay must be, else those of the next share are taken
FIX = "sign: -1 (the paper's, for CLIP) or sign: 1; mmalign labels sign CARD DATA draws a few images under both"


class Undecided(DataError):
    """The data does not say which sign is right. verdict: the numbers; None where none could be had."""

    def __init__(self, why: str, verdict: "Verdict | None" = None) -> None:
        super().__init__(f"sign auto is not decided: {why}", at="args.sign", fix=FIX)
        self.verdict = verdict


@dataclass(frozen=True)
class Agreement:
    """Of one sign: the share of patches whose best word is in a caption; p that it is no larger for their own."""

    own: float
    others: float
    p: float


@dataclass(frozen=True)
class Verdict:
    """What captions say of both signs."""

    agreement: Mapping[int, Agreement]  # of +1 and -1
    larger: Mapping[int, float]  # p that a sign's gain, own - others, is no larger than the other sign's
    captions: int
    words: int
    common: float  # words in more than this share of captions are left out

    @property
    def sign(self) -> int | None:
        """The sign whose gain is above 0 and above the other's, both at LEVEL; None: undecided."""
        passed = (s for s in (1, -1) if self.agreement[s].p < LEVEL and self.larger[s] < LEVEL)
        return next(passed, None)

    @property
    def why(self) -> str:
        plus, minus = self.agreement[1], self.agreement[-1]
        return (
            f"with +1 the best word of {plus.own:.1%} of patches is in their own caption, of {plus.others:.1%} in "
            f"another's (p {plus.p:.2g}); with -1 of {minus.own:.1%} and {minus.others:.1%} (p {minus.p:.2g}); "
            f"+1 gains more than -1: p {self.larger[1]:.2g}, less: p {self.larger[-1]:.2g}; {self.captions} captions, "
            f"{self.words} content words"
        )

    def as_json(self) -> dict[str, Any]:
        signs = {f"{s:+d}": {**asdict(one), "larger_p": self.larger[s]} for s, one in self.agreement.items()}
        counts = {"captions": self.captions, "words": self.words, "common": self.common}
        return {"sign": self.sign, "signs": signs, **counts}

    def __str__(self) -> str:
        return self.why if self.sign is None else f"{self.sign:+d} ({self.why})"


def decided(
    words: Sequence[str], embed: Callable[[Sequence[str]], Tensor], images: Sequence[tuple[Tensor, str]]
) -> Verdict:
    """The verdict of `judged`; Undecided where it is none, DataError where there are no two captions to compare."""
    verdict = judged(words, embed, images)
    if verdict.sign is None:
        raise Undecided(verdict.why, verdict)
    return verdict


@torch.no_grad()
def judged(
    words: Sequence[str], embed: Callable[[Sequence[str]], Tensor], images: Sequence[tuple[Tensor, str]]
) -> Verdict:
    """Both signs' agreement with captions, their own and all others, and how sure the differences are.

    words: the source's list. embed: text_WJ of some of them, unit vectors. images: (dense_PJ, caption) without
    padding.

    Asked for is the *one* best word of a patch, among the content words that some of these captions use: a few hundred.
    Of a whole list of 41,242 the best ten would hold nearly the same near-synonyms and rarities, which no caption uses,
    for every image. A word's mean over all patches is taken off, as `center` does, so that a word that is near to
    everything (or far from everything: the best word of all patches under -1) is not the best everywhere. Neither can
    feign agreement: such a word is in one's own caption as often as in others'; but it would hide what there is.

    Function words are left out (STOP), and words in more than 5 % of captions, which agree with every image; where a
    list is so short that fewer than half of the captions keep a word (the toy world's: every shape is in a tenth of
    them), the bound is doubled until they do. Neither looks at which caption belongs to which image.

    Images with the same caption count as one. For each caption its gain is own - others: the share of its images'
    patches whose best word it has, minus the mean of that share over *all* other captions, which is what shuffling
    captions gives, exactly. Patches of an image are not independent, captions are: if captions and images were
    unrelated, a gain would be as often below as above 0, so its sign is flipped at random (DRAWS times, seed SEED), and
    p is how often the sum is at least as large. The two signs are compared by the same test of the differences of their
    gains.

    Where in the picture a word is seen, captions do not say: only what is in it at all.
    """
    dense_of = _by_caption(images)
    said_of = {caption: tokens(caption) for caption in dense_of}
    content, common = content_words(words, list(said_of.values()))
    told_of = {caption: said & content.keys() for caption, said in said_of.items() if not said.isdisjoint(content)}
    if len(told_of) < 2:
        heard = "one" if told_of else "none"
        raise Undecided(f"of {len(said_of)} captions {heard} has a content word of the list, and two are compared")
    said_UW = torch.tensor([[float(word in told) for word in content] for told in told_of.values()])
    shares_of = best_shares([dense_of[caption] for caption in told_of], embed(list(content.values())))
    agree_of = {sign: shares_UW @ said_UW.T for sign, shares_UW in shares_of.items()}
    own_of = {sign: agree_UU.diagonal() for sign, agree_UU in agree_of.items()}
    others_of = {sign: (agree_UU.sum(1) - own_of[sign]) / (len(told_of) - 1) for sign, agree_UU in agree_of.items()}
    plus_U, minus_U = ((own_of[sign] - others_of[sign]).double() for sign in (1, -1))
    p = flipped(torch.stack([plus_U, minus_U, plus_U - minus_U, minus_U - plus_U]))
    agreement = {s: Agreement(float(own_of[s].mean()), float(others_of[s].mean()), p[n]) for n, s in enumerate((1, -1))}
    return Verdict(agreement, {1: p[2], -1: p[3]}, len(told_of), len(content), common)


def _by_caption(images: Sequence[tuple[Tensor, str]]) -> dict[str, list[Tensor]]:
    """{caption: dense_PJ of each of its images}; DataError where there are no two captions."""
    dense_of: dict[str, list[Tensor]] = {}
    for dense_PJ, caption in images:
        if len(dense_PJ) and tokens(caption):
            dense_of.setdefault(caption.strip(), []).append(dense_PJ)
    if len(dense_of) < 2:
        what = f"sign auto is decided by captions, and none of {len(images)} images has one"
        if dense_of:
            what = f"sign auto compares captions, and of {len(images)} images there is one: {next(iter(dense_of))!r}"
        raise DataError(what, at="args.sign", fix="sign: 1 or sign: -1, or data with images and captions that differ")
    return dense_of


def content_words(words: Sequence[str], said: Sequence[set[str]]) -> tuple[dict[str, str], float]:
    """{in small letters: as the list has it} of the words that captions decide by; and the share of captions above
    which a word is left out."""
    heard = Counter(word for one in said for word in one)
    known = {word.lower(): word for word in reversed(words) if word.lower() in heard.keys() - STOP}
    for common in COMMON:
        content = {word: known[word] for word in sorted(known) if heard[word] <= common * len(said)}
        if sum(not one.isdisjoint(content) for one in said) >= TOLD * len(said):
            break
    return content, common


def best_shares(dense: Sequence[Sequence[Tensor]], text_WJ: Tensor) -> dict[int, Tensor]:
    """{sign: shares_UW, of each caption's patches those of which a word is the best}, each word's mean taken off.

    dense: dense_PJ of the images of each caption.
    """
    sums = torch.stack([_units(dense_PJ).double().sum(0) for each in dense for dense_PJ in each])
    mean_W = text_WJ @ (sums.sum(0) / sum(len(dense_PJ) for each in dense for dense_PJ in each)).float()
    rows: dict[int, list[Tensor]] = {1: [], -1: []}
    for each in dense:
        alike_PW = torch.cat([_units(dense_PJ) for dense_PJ in each]) @ text_WJ.T - mean_W
        for sign, best_P in ((1, alike_PW.argmax(1)), (-1, alike_PW.argmin(1))):
            rows[sign].append(torch.bincount(best_P.cpu(), minlength=len(text_WJ)).float() / len(best_P))
    return {sign: torch.stack(shares) for sign, shares in rows.items()}


def _units(dense_PJ: Tensor) -> Tensor:
    return F.normalize(dense_PJ.float(), dim=-1)


def flipped(gain_MU: Tensor) -> list[float]:
    """p of each of M rows of gains: how often random signs give a sum at least as large; one-sided."""
    random = torch.Generator().manual_seed(SEED)
    above_M = torch.zeros(len(gain_MU))
    for _ in range(0, DRAWS, 1000):
        flips_RU = torch.randint(0, 2, (1000, gain_MU.shape[1]), generator=random).double() * 2 - 1
        above_M += (flips_RU @ gain_MU.T >= gain_MU.sum(1) - 1e-9).sum(0)
    return [float((1 + above) / (1 + DRAWS)) for above in above_M]  # the observed signs are one draw
