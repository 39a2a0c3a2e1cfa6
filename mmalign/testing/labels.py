"""The contract of a label source, as a check.

Letters: P patches, N patches of any images, K words kept for a patch, W words in the list, J width of the joint space.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmalign.labels import LabelSource, Sample
from mmalign.testing.tensors import TOLERANCE
from mmalign.vision import Vision

KEEP = 3
UNHEARD = "no-such-word"  # of the data's own words, one that no list has
CAPTIONS = ["a red star", "a large blue ring left of a star", ""]


def check_labels(
    make: Callable[[int], LabelSource], encoder: Vision | None = None, captions: Sequence[str] = CAPTIONS
) -> None:
    """A label source keeps its contract.

    make: builds it, from how many words it is to keep a patch. encoder: the one it labels with, where it needs dense
    features. captions: of the data it prepares itself with; None of its words need be in them.
    """
    source = _prepared(make, encoder, captions)
    assert source.needs in ("dense", "truth"), f"needs is {source.needs!r}, not 'dense' or 'truth'"
    (_labels_truth if source.needs == "truth" else _labels_dense)(source, make, encoder, captions)


def _prepared(make: Callable[[int], LabelSource], encoder: Vision | None, captions: Sequence[str]) -> LabelSource:
    source = make(KEEP)
    decided = source.prepare(lambda: iter(captions), _sample(encoder, captions))
    assert isinstance(decided, dict), f"prepare() returns {type(decided).__name__}, not a dict of what was decided"
    texts = isinstance(source.words, list) and all(isinstance(word, str) for word in source.words)
    assert texts, "words is no list of texts after prepare()"
    assert source.words, "words is empty after prepare()"
    assert source.identity(), "identity() is empty"
    moved = source.to(torch.device("cpu"))
    assert isinstance(moved, LabelSource), f"to() returns {type(moved).__name__}, not a label source"
    return moved


def _sample(encoder: Vision | None, captions: Sequence[str]) -> Sample:
    """Dense features of noise, a caption with each."""

    def sample(images: int) -> list[tuple[Tensor, str]]:
        assert encoder is not None, "prepare() samples dense features, and needs says it labels without an encoder"
        dense_NPJ = _dense(encoder, images * encoder.patches).view(images, encoder.patches, encoder.joint)
        return [(dense_PJ, captions[n % len(captions)]) for n, dense_PJ in enumerate(dense_NPJ)]

    return sample


def _dense(encoder: Vision, patches: int) -> Tensor:
    return torch.randn(patches, encoder.joint, generator=torch.Generator().manual_seed(patches))


def _labels_dense(
    source: LabelSource, make: Callable[[int], LabelSource], encoder: Vision | None, captions: Sequence[str]
) -> None:
    assert encoder is not None, "the source needs dense features: check_labels(make, encoder)"
    dense_NJ = _dense(encoder, 7)
    words_NK, scores_NK = source.label(dense_NJ)
    _labels(source, words_NK, scores_NK, 7)
    wide = min(KEEP, len(source.words))
    assert words_NK.shape[1] == wide, f"{words_NK.shape[1]} words a patch of {wide} that were to be kept"
    _repeats(source, dense_NJ, words_NK, scores_NK)
    empty = source.label(dense_NJ[:0])
    for labels in empty:
        assert labels.shape == (0, wide), f"without patches label() gives {tuple(labels.shape)}, not {(0, wide)}"
    _labels(source, *source.label(dense_NJ.bfloat16()), 7)  # the encoder of a model that trains in bf16
    twin = _prepared(make, encoder, captions)
    assert twin.identity() == source.identity(), "two sources built alike have different identities"
    _equal(twin.label(dense_NJ), (words_NK, scores_NK), "two sources built alike give other labels")


def _labels(source: LabelSource, words_NK: Tensor, scores_NK: Tensor, patches: int) -> None:
    """Labels of so many patches are numbers and scores as they must be."""
    assert words_NK.shape == scores_NK.shape, f"words are {tuple(words_NK.shape)}, scores {tuple(scores_NK.shape)}"
    assert words_NK.dim() == 2, f"labels are {tuple(words_NK.shape)}, not patches x words"
    assert len(words_NK) == patches, f"labels of {len(words_NK)} patches, there are {patches}"
    assert words_NK.dtype == torch.long, f"words are {words_NK.dtype}, not int64"
    assert scores_NK.dtype == torch.float32, f"scores are {scores_NK.dtype}, not fp32"
    assert scores_NK.isfinite().all(), "scores are not finite"
    assert not scores_NK.requires_grad, "scores have a gradient: labels are constants"
    inside = bool(((words_NK >= 0) & (words_NK < len(source.words))).all())
    assert inside, f"words hold numbers beyond the {len(source.words)} of the list (0 where the score is 0)"
    falling = bool((scores_NK.diff(dim=1) <= 0).all())
    assert falling, "the words of a patch are not sorted, best first"
    for words_K, scores_K in zip(words_NK.tolist(), scores_NK.tolist(), strict=True):
        real = [word for word, score in zip(words_K, scores_K, strict=True) if score > 0]
        assert len(set(real)) == len(real), "a patch has the same word twice"


def _repeats(source: LabelSource, dense_NJ: Tensor, words_NK: Tensor, scores_NK: Tensor) -> None:
    before = dense_NJ.clone()
    _equal(source.label(dense_NJ), (words_NK, scores_NK), "the same patches get other labels")
    assert torch.equal(dense_NJ, before), "label() changes the features it is given"
    few = source.label(dense_NJ[2:4])
    _equal(few, (words_NK[2:4], scores_NK[2:4]), "a patch's labels depend on the others it is labelled with")


def _equal(found: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], what: str) -> None:
    close = torch.allclose(found[1], right[1], atol=TOLERANCE[torch.float32])
    assert close and torch.equal(found[0], right[0]), what  # noqa: PT018


def _labels_truth(
    source: LabelSource, make: Callable[[int], LabelSource], encoder: Vision | None, captions: Sequence[str]
) -> None:
    first, last = source.words[0], source.words[-1]
    truth = [(first,), (), (UNHEARD,), (UNHEARD, last)]
    words_PK, scores_PK = source.given(truth)
    _labels(source, words_PK, scores_PK, len(truth))
    said = [
        {source.words[word] for word, score in zip(words_K, scores_K, strict=True) if score > 0}
        for words_K, scores_K in zip(words_PK.tolist(), scores_PK.tolist(), strict=True)
    ]
    assert said[0] == {first}, f"given({first!r}) says {said[0] or 'no word'}"
    assert not said[1], f"a patch of which the data says nothing gets {said[1]}"
    assert not said[2], f"a word that is not in the list becomes {said[2]}"
    assert said[3] == {last}, f"given({last!r}) beside a word that is not in the list says {said[3] or 'no word'}"
    wide = source.given(truth[:1])[0].shape[1]
    assert wide == words_PK.shape[1], f"{wide} words a patch here, {words_PK.shape[1]} there: images cannot be stacked"
    twin = _prepared(make, encoder, captions)
    assert twin.identity() == source.identity(), "two sources built alike have different identities"
    _equal(twin.given(truth), (words_PK, scores_PK), "two sources built alike give other labels")
