"""The labels of patches: what they refuse, patches by number, another grid, another device, the best words."""

import itertools
from dataclasses import replace

import pytest
import torch

from mmalign.errors import CheckError
from mmalign.labels import PatchLabels
from mmalign.vision import FITS
from mmalign.vision.picture import placed

WORDS = ["red", "blue", "star", "ring"]


def labels(images=2, grid=(5, 3), top_k=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = (images, grid[0] * grid[1], top_k)
    scores = torch.randn(shape, generator=g).sort(-1, descending=True).values
    return PatchLabels(WORDS, torch.randint(len(WORDS), shape, generator=g), scores, grid)


@pytest.mark.parametrize(
    ("change", "at", "message"),
    [
        ({"grid": (5, 4)}, "args.words_BPK", r"shape \(2, 15, 3\), which is not images x 20 patches x top_k"),
        ({"words_BPK": torch.zeros(15, 3).long()}, "args.words_BPK", r"shape \(15, 3\), which is not images x 15"),
        ({"words_BPK": torch.zeros(2, 15, 0).long()}, "args.words_BPK", r"shape \(2, 15, 0\), which is not"),
        ({"scores_BPK": torch.zeros(2, 15, 2)}, "args.scores_BPK", r"\(2, 15, 3\), and scores_BPK \(2, 15, 2\)"),
        ({"words_BPK": torch.full((2, 15, 3), 4)}, "args.words_BPK", "words_BPK holds 4, and there are 4 words"),
        ({"words_BPK": torch.full((2, 15, 3), -1)}, "args.words_BPK", "words_BPK holds -1, and there are 4 words"),
        ({"frames": []}, "args.frames", r"labels of 2 images on \(5, 3\), and frames on \[\]"),
        (
            {"frames": [placed("pad", (4, 3), (5, 3), 60), placed("pad", (4, 3), (3, 5), 60)]},
            "args.frames",
            r"labels of 2 images on \(5, 3\), and frames on \[\(5, 3\), \(3, 5\)\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change, at, message):
    with pytest.raises(CheckError, match=message) as caught:
        PatchLabels(**{**vars(labels()), **change})
    assert caught.value.at == at
    assert caught.value.fix


def test_patches_are_counted_through_all_images():
    some = labels()
    words_NK, scores_NK = some.at(torch.tensor([3, 15 + 3, 29]))
    for n, (image, patch) in enumerate([(0, 3), (1, 3), (1, 14)]):
        assert torch.equal(words_NK[n], some.words_BPK[image, patch])
        assert torch.equal(scores_NK[n], some.scores_BPK[image, patch])
    assert words_NK.dtype == torch.long
    narrow = PatchLabels(WORDS, some.words_BPK.int(), some.scores_BPK, some.grid)
    assert narrow.at(torch.tensor([0]))[0].dtype == torch.long


GRIDS = [((5, 3), (4, 4)), ((3, 3), (6, 6)), ((27, 27), (24, 24)), ((2, 7), (1, 1)), ((24, 24), (27, 27))]


@pytest.mark.parametrize(("source", "target"), GRIDS)
def test_another_grid_takes_the_patch_under_the_centre(source, target):
    some = labels(grid=source)
    assert some.on(source) is some
    moved = some.on(target)
    assert (moved.grid, len(moved)) == (target, 2)
    for row in range(target[0]):
        for column in range(target[1]):
            y, x = (row + 0.5) / target[0], (column + 0.5) / target[1]  # of the image
            under, patch = int(y * source[0]) * source[1] + int(x * source[1]), row * target[1] + column
            assert torch.equal(moved.words_BPK[:, patch], some.words_BPK[:, under])
            assert torch.equal(moved.scores_BPK[:, patch], some.scores_BPK[:, under])


@pytest.mark.parametrize("fits", list(itertools.product(FITS, FITS)))
def test_labels_of_another_fit(fits):
    """Each image by its own frame; a patch that nothing is under has no word, whatever its scores were."""
    sizes = [(400, 300), (300, 400)]
    source, target = ([placed(fit, size, grid, 60) for size in sizes] for fit, grid in zip(fits, GRIDS[0], strict=True))
    some = replace(labels(), frames=source)
    moved = some.onto(target)
    assert (moved.grid, list(moved.frames)) == ((4, 4), target)
    for image in (0, 1):
        for patch, under in enumerate(source[image].onto(target[image])):
            if under < 0:
                assert (moved.scores_BPK[image, patch] == 0).all()
            else:
                assert torch.equal(moved.words_BPK[image, patch], some.words_BPK[image, under])
                assert torch.equal(moved.scores_BPK[image, patch], some.scores_BPK[image, under])
    on = some.on((6, 6))  # the same part of the pictures
    assert [frame.region for frame in on.frames] == [frame.region for frame in source]


def test_labels_without_frames_are_of_the_whole_picture():
    target = [placed("pad", (400, 300), (6, 6), 60)] * 2
    whole = replace(labels(), frames=[placed("squash", (400, 300), (5, 3), 60)] * 2)
    assert torch.equal(labels().onto(target).scores_BPK, whole.onto(target).scores_BPK)


def test_labels_of_no_image():
    none = PatchLabels(WORDS, torch.zeros(0, 15, 3).long(), torch.zeros(0, 15, 3), (5, 3), [])
    assert none.onto([]) is none
    assert none.on((4, 4)).words_BPK.shape == none.on((4, 4)).scores_BPK.shape == (0, 16, 3)


def test_frames_of_other_pictures_are_refused():
    frames = [placed("pad", (400, 300), (5, 3), 60), placed("pad", (300, 400), (5, 3), 60)]
    some = replace(labels(), frames=frames)
    with pytest.raises(
        CheckError, match=r"labels of pictures of \[\(400, 300\), \(300, 400\)\], and frames of \[\(3"
    ) as caught:
        some.onto(frames[::-1])
    assert (caught.value.at, caught.value.fix) == ("args.frames", "of the same pictures, in the same order")


def test_the_best_word_of_each_patch_and_none():
    words = torch.tensor([[[0, 1], [2, 3], [1, 0]]])
    scores = torch.tensor([[[0.2, 0.5], [0.0, -1.0], [0.3, 0.1]]])
    assert PatchLabels(WORDS, words, scores, (1, 3)).best == [["blue", "", "blue"]]
    assert PatchLabels(WORDS, words[:0], scores[:0], (1, 3)).best == []


def test_both_tensors_move():
    some = labels()
    assert some.to("cpu") is some
    moved = some.to("cuda" if torch.cuda.is_available() else "cpu:0")
    assert moved.words_BPK.device == moved.scores_BPK.device
    assert torch.equal(moved.words_BPK.cpu(), some.words_BPK)
    assert (moved.words, moved.grid) == (some.words, some.grid)
