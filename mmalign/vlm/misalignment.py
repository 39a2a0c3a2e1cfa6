"""What a patch is called on both sides: by its labels, and by the word nearest to its visual token (SEA, figure 1).

SEA (arXiv 2408.11813) begins with patches of which the encoder's joint space with text knows what they show, while
their visual tokens are near to other words. Both words come from one list, the labels' own; a visual token is compared
with it as eq. 8 compares in training. Where the data knows what a patch shows, both are right or wrong.

Letters: P patches of an image, which are its Q visual tokens, K words kept of a label, D width of the language model.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.data import Truth
from mmalign.errors import CheckError
from mmalign.explore import Explorer, Pane, Picture, Ranked
from mmalign.explore import Truth as Shown
from mmalign.io.pictures import base64_png
from mmalign.io.wordlist import forms
from mmalign.labels import PatchLabels
from mmalign.vlm import nearest
from mmalign.vlm.pictures import named
from mmalign.vlm.readout import Readout

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.vlm.model import VLM


@dataclass
class PatchWords:
    """One patch of one image. What nobody can know is None: right or wrong of padding, of a patch of which the data
    says nothing, and of one none of whose true words is in the list.

    A word counts as another in any of its spellings, see `wordlist.forms`.
    """

    image: str  # its name
    token: int  # its number, row by row
    row: int
    column: int
    padding: bool
    word: str  # of the list, nearest to the visual token
    cosine: float
    labels: list[tuple[str, float]]  # words of the label source, best first, with scores above 0
    label_cosine: float | None  # of the visual token and its best label; None: there is none
    true: tuple[str, ...]  # what the data says it shows; empty: nothing
    object: bool | None  # whether that is an object or the background; None: neither, or not known
    agrees: bool | None  # whether `word` is one of the labels; None: there is none
    right: bool | None  # whether `word` is true of the patch
    label_right: bool | None  # whether its best label is


@dataclass
class _Image:
    name: str
    token_PD: Tensor
    words_PK: Tensor
    scores_PK: Tensor
    truth: Truth
    seen: list[bool]


@torch.no_grad()
def misalignment(
    model: "VLM", images: "Image | Sequence[Image]", labels: PatchLabels, truths: Sequence[Truth] | None = None,
    names: Sequence[str] | None = None,
) -> list[PatchWords]:  # fmt: skip
    """The words of every patch of some PIL images, an image after the other.

    labels: of these images; they are laid onto the model's own patches. truths: what each patch of `model.frames`
    shows; None: the data does not know. Raises CheckError where these differ in number, for a model whose visual tokens
    are no patches, and for a list of which its tokenizer makes nothing.
    """
    pictures = named(images, names)
    frames = model.frames([picture for _, picture in pictures])
    for what, each in (("labels", labels), ("truths", truths)):
        if each is not None and len(each) != len(pictures):
            raise CheckError(f"{what} of {len(each)} images, and {len(pictures)} images", at=what, fix="of the same")
    read = nearest.reading(model, "input", [0], labels.words, 1)
    own, patches = labels.onto(frames), list[PatchWords]()
    for number, (name, picture) in enumerate(pictures):
        with model.evaluating():
            token_PD = model.hidden_states(picture, [0])[0][0]
        truth = truths[number] if truths is not None else Truth([()] * len(token_PD))
        image = _Image(name, token_PD, own.words_BPK[number], own.scores_BPK[number], truth, frames[number].seen())
        patches += _patches(image, frames[number].grid[1], labels.words, read)
    return patches


def _patches(image: _Image, columns: int, words: Sequence[str], read: Readout) -> Iterator[PatchWords]:
    cosine_P, number_P = (each[:, 0].tolist() for each in read(0, image.token_PD))
    labels_P, best_P = _labels(image, words), _label_cosines(image, read)
    listed = {word.casefold() for word in words}
    kinds = image.truth.object or [True if true else None for true in image.truth.words]
    for p, (word, labels) in enumerate(zip(map(words.__getitem__, number_P), labels_P, strict=True)):
        true, kind = (image.truth.words[p], kinds[p]) if image.seen[p] else ((), None)
        known = [one for one in true if not forms(one).isdisjoint(listed)]
        yield PatchWords(
            image.name, p, *divmod(p, columns), not image.seen[p], word, cosine_P[p], labels,
            best_P[p] if labels else None, tuple(true), kind,
            agrees=_among(word, [label for label, _ in labels]),
            right=_among(word, known),
            label_right=_among(labels[0][0], known) if labels else None,
        )  # fmt: skip


def _labels(image: _Image, words: Sequence[str]) -> list[list[tuple[str, float]]]:
    rows = zip(image.words_PK.tolist(), image.scores_PK.tolist(), strict=True)
    return [[(words[n], score) for n, score in zip(*row, strict=True) if score > 0] for row in rows]


def _label_cosines(image: _Image, read: Readout) -> list[float | None]:
    """Of each visual token and its best label, as in eq. 8; None for a word the tokenizer makes nothing of."""
    text_PD = read.embed(image.words_PK[:, 0].long().to(image.token_PD.device)).float()
    cosine_P = F.cosine_similarity(image.token_PD.float(), text_PD, dim=-1)
    return [cosine if spelled else None for cosine, spelled in zip(cosine_P.tolist(), text_PD.any(-1), strict=True)]


def _among(word: str, others: Sequence[str]) -> bool | None:
    """Whether a word is one of some, in any spelling; None where there are none."""
    return any(word.casefold() in forms(other) for other in others) if others else None


def explorer(
    model: "VLM", images: "Image | Sequence[Image]", patches: Sequence[PatchWords], names: Sequence[str] | None = None
) -> Explorer:
    """The picture of SEA's figure 1: each image as the visual tokens say it and as the labels do, side by side, right
    and wrong apart where that is known. patches, names: of `misalignment`, for the same images."""
    shown = []
    for name, picture in named(images, names):
        file, own = base64_png(model.shown(picture)), [one for one in patches if one.image == name]
        tokens: Ranked = [[(one.word, one.cosine)] for one in own]
        panes = [
            _pane("visual tokens", file, model, own, tokens, [one.right for one in own]),
            _pane("labels", file, model, own, [one.labels for one in own], [one.label_right for one in own]),
        ]
        shown.append(Picture(name, panes))
    told = "On each patch, the word of the labels' list nearest to its visual token (SEA, eq. 8), and its best label."
    known = any(one.right is not None for one in patches)
    return Explorer(shown, told, "cosine or score", "truth" if known else "word")


def _pane(
    name: str, file: str, model: "VLM", own: Sequence[PatchWords], words: Ranked, right: Sequence[bool | None]
) -> Pane:
    known = any(one is not None for one in right)
    truth = Shown([one.true for one in own], [one.object for one in own], {0: right}) if known else None
    return Pane(name, file, model.grid, {0: words}, [not one.padding for one in own], truth=truth)


KINDS = {"object": True, "background": False}


def tally(patches: Iterable[PatchWords]) -> dict[str, dict[str, int]]:
    """How many patches agree and are right: `all` of them, and those that show an object, or the background.

    patches: without padding. labelled: with a label; agree: whose word is one of their labels. known: of which the data
    says what they show, in words of the list; right: whose word is true; label_right: whose best label is; misaligned:
    whose best label is true and whose word is not, as in SEA's figure 1.
    """
    shown = [one for one in patches if not one.padding]
    of_kind = {"all": shown, **{name: [one for one in shown if one.object is kind] for name, kind in KINDS.items()}}
    return {name: _tallied(own) for name, own in of_kind.items() if own or name == "all"}


def _tallied(patches: Sequence[PatchWords]) -> dict[str, int]:
    return {
        "patches": len(patches),
        "labelled": sum(bool(one.labels) for one in patches),
        "agree": sum(bool(one.agrees) for one in patches),
        "known": sum(one.right is not None for one in patches),
        "right": sum(bool(one.right) for one in patches),
        "label_right": sum(bool(one.label_right) for one in patches),
        "misaligned": sum(bool(one.label_right) and not one.right for one in patches),
    }
