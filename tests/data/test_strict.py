"""JSON that readers would not agree on is refused, with the reason."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.data import strict
from mmalign.data.reasons import Unusable


def test_a_row():
    row = {"id": 7, "text": 'é 😀 "quoted" \\ud800 is spelled out'}
    assert strict.parse(json.dumps(row).encode()) == row
    assert strict.parse(json.dumps(row, ensure_ascii=False).encode()) == row


@pytest.mark.parametrize(
    ("data", "reason", "message"),
    [
        (b"", "json", "row 3 is not valid JSON: Expecting value"),
        (b'{"a": ', "json", "not valid JSON"),
        (b'{"a": 1} {"b": 2}', "json", "Extra data"),
        (b'{"a": "\xff"}', "json", "row 3 is not UTF-8: invalid start byte at byte 7"),
        (b'{"a": ' + b"1" * 5000 + b"}", "json", "not valid JSON"),
        (b"[1]", "shape", "row 3 is a list, not an object"),
        (b"null", "shape", "row 3 is a NoneType"),
        (b'{"a": NaN}', "nan", "NaN is no JSON"),
        (b'{"a": [-Infinity]}', "nan", "-Infinity is no JSON"),
        (b'{"a": {"b": 1, "b": 1}}', "twice", "the key 'b' is given twice"),
        (b'{"a": "\\ud83d"}', "surrogate", "row 3 has U+D83D alone, half of a pair"),
        (b'{"\\uDE00": 1}', "surrogate", "row 3 has U+DE00 alone"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep", "row 3 is nested too deep"),
    ],
)
def test_refused(data, reason, message):
    with pytest.raises(Unusable) as caught:
        strict.parse(data, "row 3")
    assert caught.value.reason == reason
    assert message in caught.value.what


def test_a_whole_pair_of_surrogates_is_a_character():
    assert strict.parse(b'{"a": "\\ud83d\\ude00"}') == {"a": "😀"}


@given(st.binary(max_size=60))
def test_nothing_else_is_raised(data):
    with contextlib.suppress(Unusable):
        assert isinstance(strict.parse(data), dict)


@pytest.mark.parametrize(("line", "fix"), [
    (b"{'id': 1}", "JSON has double quotes: write the rows with json.dumps, not with str"),
    (b'{"id": 1,}', "take the comma in front of the } away"),
    (b'{"id": 1} {"id": 2}', "a line of its own for each object"),
    (b'{"id": 1', ""),
])  # fmt: skip
def test_what_to_try(line, fix):
    with pytest.raises(Unusable) as told:
        strict.parse(line)
    assert told.value.fix == fix
