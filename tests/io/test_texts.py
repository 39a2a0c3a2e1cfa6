"""Files of texts, one a line."""

import pytest

from mmalign.errors import DataError
from mmalign.io import texts
from mmalign.io.texts import read_texts


@pytest.fixture
def written(tmp_path):
    def write(content: bytes) -> str:
        (tmp_path / "a.txt").write_bytes(content)
        return str(tmp_path / "a.txt")

    return write


def test_lines_that_are_not_blank(written):
    assert read_texts(written("\ufeffA red ring.\r\n\n  O\u00f9 est \u6771\u4eac ?\n \n".encode())) == [
        "A red ring.", "  O\u00f9 est \u6771\u4eac ?",
    ]  # fmt: skip


@pytest.mark.parametrize("most", [8, 9, 10, 11, 12, 13])
def test_of_a_long_file_the_beginning(written, monkeypatch, most):
    """Cut between words, never inside a character."""
    monkeypatch.setattr(texts, "MOST", most)
    assert read_texts(written("one two\n\u6771\u4eac \u6771\n".encode())) == ["one two"]
    assert read_texts(written(b"one")) == ["one"]


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"", "has no text"), (b"\n  \n", "has no text"), (b"a\0b", "is a binary file"), (b"a\xff", "is not UTF-8")],
)
def test_what_is_no_text(written, content, what):
    place = written(content)
    with pytest.raises(DataError, match=what) as caught:
        read_texts(place)
    assert (caught.value.at, caught.value.fix) == (place, "a file of UTF-8 text, one text a line")


def test_a_file_that_cannot_be_read(tmp_path):
    for place in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(DataError, match="cannot read the texts"):
            read_texts(str(place))
