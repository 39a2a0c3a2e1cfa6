"""Alignment on pictures into which people drew boxes: the number by hand, padded, cropped and squared."""

import json

import pytest
import torch
from PIL import Image

from mmalign.benchmarks.alignment import Alignment
from mmalign.data.boxes import CocoBoxes
from mmalign.errors import DataError
from mmalign.testing import check_probe
from mmalign.testing.benchmarks import StandIn
from mmalign.vision.picture import placed

WIDE, HIGH, SQUARE = (60, 45), (45, 60), (48, 48)
FITS = {WIDE: ("pad", 60), HIGH: ("crop", 45), SQUARE: ("squash", 48)}  # a grid of 6 x 6 in a square of such a side
DOG, CAT, PERSON, TRAFFIC, LIGHT, OTHER = 1, 2, 3, 4, 5, 9

# x, y, width, height in pixels. In the wide picture a patch is 10 pixels wide and its rows begin at y = -7: the first
# and the last show 3 and 2 pixels of it, which is padding. In the high one a patch is 7.5 pixels, rows begin at y = 7.
BOXES = {
    WIDE: [("dog", 0, 3, 20, 20), ("traffic light", 40, 3, 10, 30), ("cat", 21, 34, 3, 3), ("crowd", 50, 33, 10, 12)],
    HIGH: [("dog", 0, 0, 45, 5), ("cat", 0, 7, 15, 15), ("person", 30, 44.5, 15, 15.5)],
    SQUARE: [("dog", 0, 0, 48, 24), ("cat", 0, 0, 8, 8)],
}
NEAREST = {  # {patch: token}; the others are OTHER
    WIDE: {6: DOG, 7: DOG, 12: CAT, 13: DOG, 10: TRAFFIC, 16: LIGHT, 22: DOG, 0: DOG, 29: PERSON},
    HIGH: {0: CAT, 1: CAT, 6: CAT, 7: PERSON, 34: PERSON, 35: DOG},
    SQUARE: {0: CAT, **dict.fromkeys(range(1, 11), DOG)},
}


class Shown(StandIn):
    """Sees the three pictures: what is near to their patches stands above."""

    grid, depth = (6, 6), 0
    listed = {DOG: 1, CAT: 0, PERSON: 2}  # numbers in the word list below
    asked: list[str] = []

    def nearest_tokens(self, images, layers=(0,), top_k=1, readout="input"):
        token_BQ = torch.tensor([[NEAREST[image.size].get(patch, OTHER) for patch in range(36)] for image in images])
        return {layer: (torch.ones(*token_BQ.shape, 1), token_BQ[..., None]) for layer in layers}

    def nearest_listed(self, images, words, layers=(0,), top_k=1, readout="input"):
        self.asked = list(words)
        cosine_BQK, token_BQK = self.nearest_tokens(images)[0]
        return {0: (cosine_BQK, token_BQK.clone().apply_(lambda token: self.listed.get(token, 3)))}

    def frames(self, images):
        return [placed(FITS[image.size][0], image.size, self.grid, FITS[image.size][1]) for image in images]

    def pieces(self, words):
        return [{"dog": [DOG], "cat": [CAT], "person": [PERSON], "traffic light": [TRAFFIC, LIGHT]}[w] for w in words]


@pytest.fixture
def data(tmp_path):
    names = ["dog", "cat", "person", "traffic light"]
    images, annotations = [], []
    for id_, (size, boxes) in enumerate(BOXES.items()):
        Image.new("RGB", size, (40 * id_, 90, 30)).save(tmp_path / f"{id_}.png")
        images.append({"id": id_, "file_name": f"{id_}.png", "width": size[0], "height": size[1]})
        for name, *box in boxes:
            crowd = name == "crowd"
            category = names.index("person" if crowd else name)
            annotations.append({"image_id": id_, "category_id": category, "bbox": box, "iscrowd": int(crowd)})
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    return CocoBoxes(str(tmp_path / "boxes.json"))


def test_tokens_by_hand(data):
    score = Alignment(data).measure(Shown())
    # wide: dog 3 of 4, traffic light 2 of 3; high: cat 3 of 4, person 1 of 2; square: cat 1 of 1, dog 10 of 17
    assert score.items == pytest.approx({"0@0": 100 * 5 / 7, "1@1": 100 * 4 / 6, "2@2": 100 * 11 / 18})
    assert score.metrics["object"] == pytest.approx(100 * 20 / 31)
    # wide's dog dog traffic cat dog light dog against cat cat cat cat person person cat: 1 right;
    # high's cat cat cat person person dog against cat dog dog dog dog dog: 2; square's cat and ten dogs against
    # dog dog light dog dog light light, again and again: 6
    assert score.metrics["object_shuffled"] == pytest.approx(100 * 9 / 31)
    # background: 24 - 4 - 3 - 1 (a little cat) - 1 (a crowd), 36 - 6, 18. Its words are unknown, so it has no share
    assert score.counts == {
        "images": 3,
        "object_patches": 31,
        "background_patches": 15 + 30 + 18,
        "padding_patches": 12,
    }
    assert set(score.metrics) == {"object", "object_strict", "object_shuffled", "distinct"}


def test_the_model_is_asked_once_and_pictures_are_opened_as_it_looks(data, monkeypatch):
    """So that a readout is made once, and no data set lies in memory."""
    monkeypatch.setattr("mmalign.benchmarks.alignment.BATCH", 2)
    asked, opened, image = [], [], data.image
    monkeypatch.setattr(data, "image", lambda reference: opened.append(reference) or image(reference))

    class Asked(Shown):
        def nearest_tokens(self, images, layers=(0,), top_k=1, readout="input"):
            asked.append((len(images), len(opened)))
            images[1:2]
            assert len(opened) == asked[-1][1] + 1
            return super().nearest_tokens(images, layers, top_k, readout)

    assert Alignment(data).measure(Asked()).metrics == Alignment(data).measure(Shown()).metrics
    assert [many for many, _ in asked] == [3]


def test_words_by_hand(data, tmp_path):
    (tmp_path / "words.txt").write_text("cat\nDog\nperson\ntree\n")
    model = Shown()
    score = Alignment(data, words=str(tmp_path / "words.txt")).measure(model)
    assert model.asked == ["cat", "Dog", "person", "tree"]
    assert score.metrics["object"] == pytest.approx(100 * 18 / 28)  # without the traffic light, which is not listed
    assert score.counts["unlisted_patches"] == 3
    assert score.counts["object_patches"] == 28
    assert score.metrics["distinct"] == 4


def test_words_of_a_list_in_other_spellings(data, tmp_path):
    """The dogs are in the list in the plural, the cats in capitals, persons as they are: strictly, no dog is right."""
    (tmp_path / "words.txt").write_text("CAT\ndogs\nperson\ntree\nTraffic lights\n")
    score = Alignment(data, words=str(tmp_path / "words.txt")).measure(Shown())
    assert score.metrics["object"] == pytest.approx(100 * 18 / 31)
    assert score.metrics["object_strict"] == pytest.approx(100 * 5 / 31)  # three cats and a person; a cat


def test_a_list_that_has_none_of_the_words(data, tmp_path):
    (tmp_path / "words.txt").write_text("tree\n")
    model = Shown()
    with pytest.raises(DataError) as caught:
        Alignment(data, words=str(tmp_path / "words.txt")).measure(model)
    assert model.asked == []  # known before the model looks at anything
    assert (
        caught.value.what == "alignment: none of the words of 31 object patches is in the list: dog, traffic light, cat"
    )
    with pytest.raises(DataError, match="cannot read the word list"):
        Alignment(data, words=str(tmp_path / "none.txt"))


def test_data_that_shows_no_object(data):
    data.drawn.regions.loose_M[:] = True
    with pytest.raises(DataError, match="alignment: the data knows of no object in any patch of 3 images"):
        Alignment(data).measure(Shown())


@pytest.mark.parametrize("listed", [False, True])
def test_the_contract_of_a_probe(data, tmp_path, listed):
    (tmp_path / "words.txt").write_text("cat\ndog\nperson\ntraffic light\n")
    check_probe(lambda: Alignment(data, words=str(tmp_path / "words.txt") if listed else None))
