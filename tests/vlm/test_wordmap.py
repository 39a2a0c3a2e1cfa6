"""What visual tokens say, as rows, a page, a notebook's output and a DataFrame."""

import sys
from types import ModuleType

import pytest
from PIL import Image

from mmalign.errors import RunError
from mmalign.vlm.wordmap import WordMap

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
    for part in ("<!doctype", "<html", "<head", "<body", "<title", "</body>", "body {", "h1 {"):
        assert part not in piece
    for text in (page, piece):
        assert "<h2>&lt;y&gt;</h2>" in text
        assert "<y>" not in text
        assert text.count("data:image/png;base64,") == 4
        assert text.count("<details open>") == 2  # the first layer of each picture
        assert text.count('<div class="seen"') == 4
    assert list(tmp_path.glob("**/*.part")) == []
    words.save(str(tmp_path / "again.html"))
    assert "<h1>What visual tokens say</h1>" in (tmp_path / "again.html").read_text("utf-8")


def test_words_are_escaped_where_they_stand_and_in_what_the_pointer_shows(words):
    words.words[3][0][0] = [("<script>", 0.5), ('"quoted"', 0.4)]
    page = words.html()
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") == 3  # on the patch, in its title, in the table
    assert 'title="&lt;script&gt; 0.500\n&#34;quoted&#34; 0.400\n"' in page


def test_two_pictures_of_one_name_stay_apart(words):
    """Each with its own words."""
    words.names = ["same", "same"]
    page = words._repr_html_()
    assert page.count('<div class="seen"') == 4
    first, second = page.split("<h2>same</h2>")[1:]
    assert ">a</span>" in first
    assert ">a</span>" not in second
    assert ">e</span>" in second
