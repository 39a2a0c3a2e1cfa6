"""Texts that a user names, and what is none."""

import pytest

from mmalign.errors import DataError
from mmalign.io.texts import read_text


def test_a_text_and_the_one_in_the_package(tmp_path):
    place = tmp_path / "a.txt"
    place.write_bytes("\ufeffÜber Berge.\nZwei.".encode())
    assert read_text(str(place)) == "Über Berge.\nZwei."
    assert len(read_text("pkg:mmalign.vlm/prose.txt").split()) > 1000


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "cannot read the text .*: No such file"), (b"a\0b", "the text is a binary file"),
        (b"\xff\xfe", "the text is not UTF-8: invalid start byte at byte 0"), (b" \n", "the text is empty"),
    ],
)  # fmt: skip
def test_what_is_no_text(tmp_path, content, what):
    place = tmp_path / "a.txt"
    if content is not None:
        place.write_bytes(content)
    with pytest.raises(DataError, match=what) as caught:
        read_text(str(place))
    assert caught.value.at == str(place)
