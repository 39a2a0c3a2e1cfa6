"""What visual tokens say, as rows, a page, a notebook's output and a DataFrame."""

import json
import sys
from types import ModuleType

import pytest
import torch
from PIL import Image

from mmalign.errors import CheckError, RunError
from mmalign.labels import PatchLabels
from mmalign.vision.frame import Frame
from mmalign.vlm.wordmap import SideBySide, WordMap

COLUMNS = ["image", "layer", "token", "row", "column", "padding", "rank", "word", "cosine"]


def said(*words):
    return [(word, 0.5 - rank / 10) for rank, word in enumerate(words)]


@pytest.fixture
def words():
    """Two pictures of 2 x 1 patches, two layers in no order, two words a token."""
    tokens = {
        3: [[said("a", "b"), said("c", "d")], [said("e", "f"), said("g", "h")]],
        0: [[said("i", "j"), said("k", "l")], [said("m", "n"), said("o", "p")]],
    }
    pictures = [Image.new("RGB", (8, 16), color) for color in ("red", "blue")]
    return WordMap(["x", "<y>"], pictures, (2, 1), tokens)


def test_image_by_image_in_the_order_asked_for(words):
    assert [(one.image, one.layer) for one in words] == [("x", 3), ("x", 0), ("<y>", 3), ("<y>", 0)]
    assert [one.words[1][0][0] for one in words] == ["c", "k", "g", "o"]


def test_rows(words):
    rows = list(words.rows())
    assert len(rows) == 2 * 2 * 2 * 2
    assert list(rows[0]) == COLUMNS
    assert list(rows[3].values()) == ["x", 3, 1, 1, 0, False, 1, "d", 0.4]
    words.grid = None
    assert list(next(words.rows()).values()) == ["x", 3, 0, None, None, False, 0, "a", 0.5]


def test_a_grid_is_counted_row_by_row(words):
    words.grid = (1, 2)
    assert [(row["row"], row["column"]) for row in words.rows()][:4] == [(0, 0), (0, 0), (0, 1), (0, 1)]


def test_to_pandas(words, monkeypatch):
    frames = ModuleType("pandas")
    frames.DataFrame = lambda rows: ("frame", rows)
    monkeypatch.setitem(sys.modules, "pandas", frames)
    assert words.to_pandas() == ("frame", list(words.rows()))


def test_without_pandas(words, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)  # as where it is not installed
    with pytest.raises(RunError, match="a DataFrame needs the package pandas") as error:
        words.to_pandas()
    assert error.value.fix == "pip install pandas"


def test_a_page_is_whole_and_a_notebook_gets_a_piece(words, tmp_path):
    words.save(tmp_path / "deep" / "page.html", title="<title>")
    page, piece = (tmp_path / "deep" / "page.html").read_text("utf-8"), words._repr_html_()
    assert page == words.html("<title>")
    assert page.startswith("<!doctype html>")
    assert "<title>&lt;title&gt;</title>" in page
    for part in ("<!doctype", "<html", "<head", "<body", "<title>What", "</body>", "\nbody {", "\nh1 {"):
        assert part not in piece
    for text in (page, piece):
        assert text.count("<section") == 1
        assert [one["name"] for one in carried(text)["pictures"]] == ["x", "<y>"]
        assert "<y>" not in text
    assert list(tmp_path.glob("**/*.part")) == []
    words.save(str(tmp_path / "again.html"))
    assert "<h1>What visual tokens say</h1>" in (tmp_path / "again.html").read_text("utf-8")


def carried(text):
    """What a page carries."""
    return json.loads(text.split('class="mmx-data">')[1].split("</script>")[0])


def test_what_a_page_is_told_of_each_image(words):
    words.seen, words.ceiling, words.readout = [[True, False], [True, True]], {3: 0.4}, "lens"
    first, second = (words.pane(number) for number in (0, 1))
    assert first.layers == {3: words.words[3][0], 0: words.words[0][0]}
    assert second.layers[3][1] == said("g", "h")
    assert (first.grid, first.seen, second.seen) == ((2, 1), [True, False], [True, True])
    assert first.remarks == {3: "40% of perfect tokens are read right: cannot be read so", 0: ""}
    assert first.png != second.png
    assert "by the layer's lens by cosine" in carried(words.html())["told"]


def test_words_are_escaped(words):
    words.words[3][0][0] = [("<script>", 0.5), ('"quoted"', 0.4)]
    page = words.html()
    assert page.count("<script>") == 1  # our own
    assert {"<script>", '"quoted"'} <= set(carried(page)["words"])


def test_two_pictures_of_one_name_stay_apart(words):
    """Each with its own words."""
    words.names = ["same", "same"]
    first, second = carried(words._repr_html_())["pictures"]
    assert first["panes"][0]["word"] != second["panes"][0]["word"]
    assert first["panes"][0]["image"] != second["panes"][0]["image"]


def test_two_models_of_the_same_images(words, tmp_path):
    other = WordMap(words.names, words.pictures, None, {0: [[said("z")], [said("y")]]})
    both = words.beside(other, names=["base", "sea"])
    assert isinstance(both, SideBySide)
    data = carried(both.html())
    assert [[pane["name"] for pane in one["panes"]] for one in data["pictures"]] == [["base", "sea"]] * 2
    assert len(data["images"]) == 2  # each picture once
    assert [pane["layers"] for pane in data["pictures"][0]["panes"]] == [[3, 0], [0]]
    both.save(tmp_path / "both.html", "both")
    assert (tmp_path / "both.html").read_text("utf-8") == both.html("both")
    assert both._repr_html_() == both.html(whole=False)
    assert [pane["name"] for pane in carried(words.beside(other).html())["pictures"][0]["panes"]] == ["1", "2"]


def test_models_of_other_images(words):
    other = WordMap(["z"], words.pictures[:1], (2, 1), {0: [words.words[0][0]]})
    with pytest.raises(CheckError, match=r"words of the images \['z'\] beside those of \['x', '<y>'\]"):
        words.beside(other)
    with pytest.raises(CheckError, match="1 names of 2 models"):
        words.beside(words, names=["one"])


def test_labels_lie_on_the_patches(words):
    numbers, scores = torch.tensor([[[1, 0]], [[0, 1]]]), torch.tensor([[[0.5, 0.25]], [[0.3, 0.0]]])
    labelled = words.with_labels(PatchLabels(["red", "star"], numbers, scores, (1, 1)))
    assert words.labels is None
    assert [labelled.pane(number).labels for number in (0, 1)] == [
        [[("star", 0.5), ("red", 0.25)]] * 2,
        [[("red", pytest.approx(0.3))]] * 2,
    ]
    frames = [Frame("pad", (8, 16), (2, 1), (0.0, -1.0, 1.0, 1.0))] * 2  # the upper patch is padding
    words.frames = frames
    own = PatchLabels(["red", "star"], numbers, scores, (1, 1), [Frame("squash", (8, 16), (1, 1))] * 2)
    assert words.with_labels(own).pane(0).labels == [[], [("star", 0.5), ("red", 0.25)]]


def test_how_much_tokens_count(words):
    attentive = words.with_attention(torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    assert [attentive.pane(number).attention for number in (0, 1)] == [[0.25, 0.75], [1.0, 0.0]]
    assert words.pane(0).attention is None
    with pytest.raises(CheckError, match=r"shares of \[2, 1\] tokens, and the images have \[2, 2\]"):
        words.with_attention([[0.5, 0.5], [1.0]])


def test_labels_that_do_not_fit(words):
    labels = PatchLabels(["red"], torch.zeros(1, 2, 1).long(), torch.ones(1, 2, 1), (2, 1))
    with pytest.raises(CheckError, match="labels of 1 images, and words of 2"):
        words.with_labels(labels)
    words.grid = None
    with pytest.raises(CheckError, match="labels lie on patches, and these visual tokens are none"):
        words.with_labels(labels)
