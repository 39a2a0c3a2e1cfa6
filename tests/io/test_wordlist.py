"""Word lists from files people really have."""

from pathlib import Path

import pytest

from mmalign.errors import DataError
from mmalign.io.wordlist import firsts, forms, read_words

SHARED = Path(__file__).parents[3] / "shared" / "data" / "2of12.txt"


def test_crlf_comments_blanks_duplicates(tmp_path):
    place = tmp_path / "words.txt"
    place.write_bytes(b"\xef\xbb\xbfred\r\n# a comment\r\n\r\n  star \r\nred\r\nice cream\r\n")
    assert read_words(str(place)) == ["red", "star", "red", "ice cream"]
    assert firsts(read_words(str(place))) == {"red": 0, "star": 1, "ice cream": 3}


def test_from_the_package_and_a_url(tmp_path):
    import fsspec

    fsspec.filesystem("memory").pipe("/w.txt", b"a\nb\n")
    assert read_words("memory://w.txt") == ["a", "b"]
    assert len(read_words("pkg:mmalign.toyworld/words/clean.txt")) == 18


@pytest.mark.skipif(not SHARED.exists(), reason="the 2of12 list is not here")
def test_2of12_has_the_papers_41242_words():
    words = read_words(str(SHARED))
    assert len(words) == 41_242
    assert len(firsts(words)) == 41_241  # `bout` is in it twice


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"# only\n\n", "is empty"),
        (b"\x89PNG\0\0", "binary"),
        (b"caf\xe9\n", "not UTF-8"),
        (None, "cannot read the word list"),
    ],
)
def test_what_is_no_word_list(tmp_path, content, message):
    place = tmp_path / "words.txt"
    if content is not None:
        place.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_words(str(place))


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("star", "stars"), ("berry", "berries"), ("box", "boxes"), ("dish", "dishes"), ("bench", "benches"),
        ("glass", "glasses"), ("bus", "buses"), ("day", "days"), ("tomato", "tomatoes"), ("shoe", "shoes"),
        ("tie", "ties"), ("traffic light", "traffic lights"), ("Teddy  Bear", "teddy bears"),
    ],
)  # fmt: skip
def test_singular_and_plural_are_forms_of_each_other(one, many):
    small = " ".join(one.casefold().split())
    assert {small, many} <= forms(one)
    assert small in forms(many)
    assert many.upper().casefold() in forms(many.upper())


@pytest.mark.parametrize(
    ("word", "other"),
    [("star", "starry"), ("gas", "ga"), ("glass", "glas"), ("bus", "bu"), ("tennis", "tenni"), ("ring", "rings ring")],
)
def test_what_is_no_form(word, other):
    assert other not in forms(word)


def test_numbers_and_marks_have_no_plural():
    assert [forms(text) for text in ("12", ",", "it's")] == [{"12"}, {","}, {"it's"}]
