"""Words for pictures at hand: those that the label stage writes, and what is no such source."""

import numpy as np
import pytest
import torch

import mmalign
from mmalign.errors import CardError, CheckError
from mmalign.labels.store import Store
from mmalign.toyworld.data import Captions
from tests.stages.test_train_labels import labelled

IMAGES = 48  # of the tiny recipe


@pytest.fixture(scope="module")
def images():
    data = Captions(IMAGES)
    return [data.image(number) for number in range(IMAGES)]


def test_they_are_those_of_the_label_stage(images, tmp_path, monkeypatch):
    """The same words of the same pictures; the store keeps scores as fp16."""
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    folder = dict(labelled(tmp_path).reads)["labels"]
    store, labels = Store(folder / "labels"), mmalign.label(images, "toy-words", top_k=3)
    assert (labels.words, labels.grid, len(labels)) == (store.words, store.header.grid, IMAGES)
    for number in range(IMAGES):
        words_PK, scores_PK, frame = store[f"train-{number}"]
        assert labels.frames[number] == frame
        assert np.array_equal(labels.words_BPK[number].numpy(), words_PK)
        assert np.allclose(labels.scores_BPK[number].half().numpy(), scores_PK, atol=1e-3)


def test_a_labeller_says_the_same_of_pictures_alone_and_together(images):
    labeller = mmalign.Labeller("toy-words", top_k=2, images=images[:8])
    assert labeller.decided == {"centred on": "8 images"}
    together, alone = labeller(images[:3]), labeller(images[1])
    assert together.words_BPK.shape == (3, 36, 2)
    assert torch.equal(together.words_BPK[1:2], alone.words_BPK)
    assert torch.allclose(together.scores_BPK[1:2], alone.scores_BPK, atol=1e-5)
    assert torch.equal(mmalign.label(images[:8], "toy-words", top_k=2).words_BPK, labeller(images[:8]).words_BPK)


def test_arguments_of_the_card(images, tmp_path):
    (tmp_path / "words.txt").write_text("red\nblue\ngreen\n")
    labels = mmalign.label(images[:2], "toy-words", top_k=5, words=str(tmp_path / "words.txt"), center=0)
    assert labels.words == ["red", "blue", "green"]
    assert labels.words_BPK.shape == (2, 36, 3)
    other = mmalign.label(images[:2], "toy-words", top_k=5, words=str(tmp_path / "words.txt"), center=0, sign=-1)
    assert torch.equal(other.words_BPK, labels.words_BPK.flip(-1))


def test_it_leaves_no_gradient_and_its_encoder_in_eval_mode(images):
    labeller = mmalign.Labeller("toy-words", images=images[:4])
    assert not labeller(images[:2]).scores_BPK.requires_grad
    assert not any(module.training for module in labeller.encoder.modules())


@pytest.mark.parametrize("top_k", [0, -1])
def test_no_word(images, top_k):
    with pytest.raises(CheckError, match=f"top_k must be at least 1, got {top_k}"):
        mmalign.label(images[:1], "toy-words", top_k=top_k)


def test_a_source_that_needs_the_data(images):
    with pytest.raises(CheckError, match="toy-truth takes the words that data gives") as error:
        mmalign.label(images[:1], "toy-truth")
    assert error.value.fix == "a source with an encoder, such as siglip-words"


def test_a_source_nobody_has(images):
    with pytest.raises(CardError, match="no labels card named 'toy-word'") as error:
        mmalign.label(images[:1], "toy-word")
    assert "toy-words" in error.value.fix


def test_an_argument_it_does_not_take(images):
    with pytest.raises(CardError, match="centre"):
        mmalign.label(images[:1], "toy-words", centre=0)


def test_a_source_that_is_centred_wants_pictures(images):
    with pytest.raises(CheckError, match="center is 256 images, and none can be read") as error:
        mmalign.Labeller("toy-words")
    assert error.value.fix.startswith("images=[...] like those to come, or center: 0")
    assert mmalign.Labeller("toy-words", args={"center": 0})(images[0]).words_BPK.shape == (1, 36, 10)


def test_a_sign_is_not_decided_by_pictures_alone(images):
    with pytest.raises(CheckError, match="sign auto is decided by captions, and none of 3 images has one") as error:
        mmalign.label(images[:3], "toy-words", sign="auto")
    assert error.value.fix.startswith("sign: 1 or sign: -1")
