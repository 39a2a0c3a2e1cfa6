"""The probes, on a model whose visual tokens are known."""

from collections.abc import Sequence

import pytest
import torch

from mmalign.benchmarks import alignment
from mmalign.benchmarks.alignment import Alignment
from mmalign.benchmarks.perplexity import Perplexity
from mmalign.data import Data, Record, Truth, Turn
from mmalign.errors import CheckError, DataError
from mmalign.vision import Frame

WORDS = ["red", "star", "pur", "##ple", "back"]  # the vocabulary; "purple" has two pieces


class Model:
    """A Subject: patch p of image i is nearest to token `shown[i][p]`."""

    grid = (1, 3)
    depth = 0
    said = 4.0  # its perplexity

    def __init__(self, shown: dict[int, list[int]]) -> None:
        self.shown = shown
        self.texts: list[str] = []

    def nearest_perfect(self, number_BQ, layers, words=None, readout="input"):
        """What a layer makes of visual tokens, it makes of perfect ones."""
        return {n: torch.tensor([self.layer(n, row) for row in number_BQ.tolist()]) for n in layers}

    def spellings(self, words):
        return self.pieces(words)

    def layer(self, number: int, tokens: list[int]) -> list[int]:
        """The token nearest to each patch at a layer."""
        return tokens

    def nearest_tokens(self, images, layers=(0,), top_k=1, readout="input"):
        nearest = {layer: torch.tensor([self.layer(layer, self.shown[image]) for image in images]) for layer in layers}
        return {
            layer: (torch.ones(token_BQ.shape)[..., None], token_BQ[..., None]) for layer, token_BQ in nearest.items()
        }

    def frames(self, images):
        return [Frame("squash", (30, 10), self.grid) for _ in images]

    def pieces(self, words: Sequence[str]) -> list[list[int]]:
        return [[2, 3] if word == "purple" else [WORDS.index(word)] for word in words]

    def perplexity(self, texts: Sequence[str]) -> float:
        self.texts = list(texts)
        return self.said

    def untrained(self) -> "Model":
        before = Model({})
        before.said = 3.0
        return before


class Known(Data):
    """Images whose references are their numbers; each with its truth."""

    truths = [
        Truth([("red", "star"), ("back",), ()], [True, False, None]),
        Truth([("purple",), ("purple",), ("back",)], [True, True, False]),
    ]

    def __len__(self) -> int:
        return len(self.truths)

    def __getitem__(self, number: int) -> Record:
        return Record(f"r{number}", (Turn("user", "<image>\nwhat is it?"), Turn("assistant", "a star")), (number,))

    def image(self, reference: int) -> int:
        return reference

    def truth(self, reference: int, frame: Frame) -> Truth:
        return self.truths[reference]


class Unseen(Data):
    """Texts only."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> Record:
        return Record(f"r{number}", (Turn("assistant", f"text {number}"),))


def test_alignment_counted_by_hand():
    score = Alignment(Known()).measure(Model({0: [1, 0, 4], 1: [3, 1, 4]}))
    assert score.headline == "object"
    assert score.metrics["object"] == pytest.approx(100 * 2 / 3)  # star; ##ple; not: star for purple
    assert score.metrics["background"] == pytest.approx(100 * 1 / 2)  # not: red; back
    # image 0's star against purple: wrong; image 1's ##ple and star against (red, star): wrong, right
    assert score.metrics["object_shuffled"] == pytest.approx(100 * 1 / 3)
    assert score.metrics["background_shuffled"] == pytest.approx(100 * 1 / 2)
    assert score.metrics["distinct"] == 4
    assert score.metrics["object_strict"] == score.metrics["object"]
    assert score.items == {"r0": 100.0, "r1": 50.0}
    assert score.counts == {"images": 2, "object_patches": 3, "background_patches": 2}


def test_alignment_by_layer():
    class Deep(Model):
        """Its first layer moves every token on to the next in the vocabulary, its second one by two."""

        depth = 2

        def layer(self, number: int, tokens: list[int]) -> list[int]:
            return [(token + number) % 5 for token in tokens]

        def nearest_perfect(self, number_BQ, layers, words=None, readout="input"):
            shown.extend(number_BQ.tolist())
            return super().nearest_perfect(number_BQ, layers, words, readout)

    shown: list[list[int]] = []
    score = Alignment(Known()).measure(Deep({0: [0, 4, 4], 1: [1, 2, 4]}))
    assert score.metrics["object"] == pytest.approx(100 * 2 / 3)  # red; not: star for purple; pur
    assert score.metrics["object_layer_1"] == pytest.approx(100 * 3 / 3)  # star; pur; ##ple
    assert score.metrics["object_layer_2"] == pytest.approx(100 * 1 / 3)  # not: pur; ##ple; not: back
    # each patch is its own word, in the images' own order: red or star, back, any; pur or ##ple, pur or ##ple, back
    (thing, back, _), (one, other, back_2) = shown
    assert (thing in (0, 1), back, one in (2, 3), other in (2, 3), back_2) == (True, 4, True, True, 4)
    # the first layer makes a star of red, and of pur a ##ple; no word is true two on
    assert score.metrics["ceiling_layer_1"] == pytest.approx(100 * ((thing == 0) + (one == 2) + (other == 2)) / 3)
    assert score.metrics["ceiling_layer_2"] == 0
    what = "less than 50% of perfect visual tokens are read right there"
    assert score.notes[0].endswith(f"2 cannot be read by input: {what}")


def test_a_ceiling_is_measured_on_the_first_images_that_are_enough(monkeypatch):
    class Deep(Model):
        depth = 1

        def nearest_perfect(self, number_BQ, layers, words=None, readout="input"):
            shown.extend(number_BQ.tolist())
            return dict.fromkeys(layers, number_BQ)

    data, shown = Known(), []
    data.truths = Known.truths * 5  # of one object patch and of two, in turn
    monkeypatch.setattr(alignment, "PERFECT", 4)
    monkeypatch.setattr(alignment, "BATCH", 2)
    score = Alignment(data).measure(Deep({key: [0, 0, 0] for key in range(10)}))
    assert len(shown) == 3
    assert score.metrics["ceiling_layer_1"] == 100
    found = Alignment(data).ceilings(Deep({}), [0, 1])
    assert found == dict.fromkeys((0, 1), (100, 100, 4))


def test_a_word_counts_in_any_of_its_spellings():
    """`back` beside `red`: as right as if it were the word, but not strictly, in what is seen and in its ceiling."""

    class Spelled(Model):
        depth = 1

        def spellings(self, words):
            return [[*ids, 4] if word == "red" else ids for word, ids in zip(words, self.pieces(words), strict=True)]

        def nearest_perfect(self, number_BQ, layers, words=None, readout="input"):
            return {n: torch.where(number_BQ < 2, 4, number_BQ) for n in layers}

    score = Alignment(Known()).measure(Spelled({0: [4, 0, 4], 1: [3, 1, 4]}))
    assert score.metrics["object"] == pytest.approx(100 * 2 / 3)  # back for red; ##ple; not: star for purple
    assert score.metrics["object_strict"] == pytest.approx(100 * 1 / 3)
    assert score.metrics["object_layer_1"] == pytest.approx(100 * 2 / 3)
    assert Alignment(Known()).ceilings(Spelled({}), [1])[1] == pytest.approx((100, 200 / 3, 3))


@pytest.mark.parametrize("readout", ["same-layer", "lens"])
def test_alignment_by_another_readout(readout):
    asked = []

    class Deep(Model):
        depth = 1

        def nearest_tokens(self, images, layers=(0,), top_k=1, readout="input"):
            asked.append(readout)
            return super().nearest_tokens(images, layers, top_k)

        def nearest_perfect(self, number_BQ, layers, words=None, readout="input"):
            asked.append(readout)
            return dict.fromkeys(layers, number_BQ)

    score = Alignment(Known(), readout=readout).measure(Deep({0: [0, 4, 4], 1: [1, 2, 4]}))
    assert set(asked) == {readout}
    assert len(asked) == 2
    assert not score.notes
    with pytest.raises(CheckError, match="readout must be one of input, same-layer, lens, got 'near'"):
        Alignment(Known(), readout="near")


def test_alignment_where_the_data_does_not_tell_objects_apart():
    data = Known()
    data.truths = [Truth([("red",), (), ("star",)]), Truth([("back",), (), ()])]
    score = Alignment(data).measure(Model({0: [0, 0, 0], 1: [4, 4, 4]}))
    assert score.counts["object_patches"] == 3
    assert score.metrics["object"] == pytest.approx(100 * 2 / 3)


def test_alignment_counts_padding_apart():
    class Padded(Model):
        """Of its three patches, the last is below the picture."""

        def frames(self, images):
            return [Frame("pad", (30, 10), self.grid, (0.0, 0.0, 1.5, 1.0)) for _ in images]

    score = Alignment(Known()).measure(Padded({0: [1, 0, 4], 1: [3, 1, 4]}))
    assert score.counts == {"images": 2, "object_patches": 3, "background_patches": 1, "padding_patches": 2}
    assert score.metrics["background"] == 0  # red; not any more: back


def test_alignment_looks_at_the_first_images_only():
    data = Known()
    data.truths = Known.truths * 3
    assert Alignment(data, images=3).measure(Model({0: [1, 0, 4], 1: [3, 1, 4], 2: [1, 0, 4]})).counts["images"] == 3


def test_alignment_refuses_what_it_cannot_compare():
    with pytest.raises(CheckError, match="images must be at least 2, got 1"):
        Alignment(Known(), images=1)
    with pytest.raises(DataError, match="the data has 0 images"):
        Alignment(Unseen()).measure(Model({}))


def test_perplexity_reads_what_is_said_without_the_image():
    model = Model({})
    score = Perplexity(Known()).measure(model)
    assert model.texts == ["what is it? a star"] * 2
    assert score.metrics == {"perplexity": 4.0, "before": 3.0, "change": 1.0}


def test_perplexity_of_the_first_texts_only():
    model = Model({})
    assert Perplexity(Unseen(), texts=2).measure(model).counts == {"texts": 2}
    assert model.texts == ["text 0", "text 1"]
    with pytest.raises(CheckError, match="texts must be at least 1, got 0"):
        Perplexity(Unseen(), texts=0)
