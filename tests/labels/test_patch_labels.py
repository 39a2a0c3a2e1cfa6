"""The labels of patches: what they refuse, patches by number, another grid, another device, the best words."""

import pytest
import torch

from mmalign.errors import CheckError
from mmalign.labels import PatchLabels, patches_under

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


@pytest.mark.parametrize(
    ("source", "target"), [((5, 3), (4, 4)), ((3, 3), (6, 6)), ((27, 27), (24, 24)), ((2, 7), (1, 1))]
)
def test_another_grid_takes_the_patch_under_the_centre(source, target):
    under = patches_under(source, target).tolist()
    for row in range(target[0]):
        for column in range(target[1]):
            y, x = (row + 0.5) / target[0], (column + 0.5) / target[1]  # of the image
            want = int(y * source[0]) * source[1] + int(x * source[1])
            assert under[row * target[1] + column] == want


def test_labels_on_another_grid():
    some = labels()
    assert some.on((5, 3)) is some
    moved = some.on((4, 4))
    assert (moved.grid, len(moved)) == ((4, 4), 2)
    assert torch.equal(moved.words_BPK[1], some.words_BPK[1][patches_under((5, 3), (4, 4))])
    assert torch.equal(moved.scores_BPK[1], some.scores_BPK[1][patches_under((5, 3), (4, 4))])


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
