"""Texts that a user names, whole or line by line, and what is none."""

import pytest

from mmalign.errors import DataError
from mmalign.io import texts
from mmalign.io.texts import read_text, read_texts


@pytest.fixture
def place(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffÜber Berge.\r\n\n  東京 ?\n \nDrei.\n".encode())
    return str(tmp_path / "a.txt")


def test_a_text_and_its_lines(place, monkeypatch):
    assert read_text(place) == "Über Berge.\r\n\n  東京 ?\n \nDrei.\n"
    assert read_texts(place) == ["Über Berge.", "  東京 ?", "Drei."]
    for most, lines in ((1, 1), (11, 1), (12, 2), (100, 3)):
        monkeypatch.setattr(texts, "MOST", most)
        assert len(read_texts(place)) == lines


@pytest.mark.parametrize("read", [read_text, read_texts])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "cannot read the text .*: No such file"), (b"a\0b", "the text is a binary file"),
        (b"\xff\xfe", "the text is not UTF-8: invalid start byte at byte 0"), (b" \n", "the text is empty"),
    ],
)  # fmt: skip
def test_what_is_no_text(tmp_path, read, content, what):
    place = tmp_path / "b.txt"
    if content is not None:
        place.write_bytes(content)
    with pytest.raises(DataError, match=what) as caught:
        read(str(place))
    assert caught.value.at == str(place)
