"""Types of documents: every kind of type, and what is said of a value that has another."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, Required, TypedDict

import pytest

from mmalign.errors import DataError, RunError
from mmalign.io import document, files
from mmalign.io.document import Count, Least, Side


class Row(TypedDict):
    name: str
    rows: Count
    more: NotRequired[list[tuple[str, float]]]


class Loose(TypedDict, total=False):
    step: Required[int]
    share: float


@dataclass
class Part:
    target: str
    args: dict[str, Any] = field(default_factory=dict)
    grid: tuple[Side, Side] | None = None


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1, int), (1, float), (1.5, float), (float("nan"), float), ("a", str), (True, bool), (None, None.__class__),
        ({"a": [1]}, Any), ([], list), ([1, 2], list[int]), ([1, "a"], tuple[int, str]), ([], tuple[int, ...]),
        ({"a": 1}, dict[str, int]), ({"a": 1}, Mapping[str, int]), (["a"], Sequence[str]), (None, int | None),
        ("x", Literal["x", "y"]), (0, Count), (1, Annotated[float, Least(0.5)]),
        ({"name": "a", "rows": 1, "other": {}}, Row), ({"name": "a", "rows": 1, "more": [["b", 2]]}, Row),
        ({"step": 1}, Loose), ({"target": "a"}, Part), ({"target": "a", "grid": [1, 2]}, Part),
        ([{"target": "a"}], list[Part]), (object(), Exception),
    ],
)  # fmt: skip
def test_what_fits(value, kind):
    assert document.problem(value, kind) is None


@pytest.mark.parametrize(
    ("value", "kind", "key", "what"),
    [
        (True, int, "", "must be a whole number, got True"),
        (1.0, int, "", "must be a whole number, got 1.0"),
        (1 << 63, int, "", "must be a whole number, got 9223372036854775808"),
        (10**400, float, "", f"must be a number, got {'1' + '0' * 59}..."),
        (1, bool, "", "must be true or false, got 1"),
        (None, str, "", "must be text, got None"),
        ("1", int | None, "", "must be a whole number or null, got '1'"),
        ({}, list, "", "must be a list, got {}"),
        ("ab", Sequence[str], "", "must be a list of text, got 'ab'"),
        ([1, "a"], list[int], "1", "must be a whole number, got 'a'"),
        ([1], tuple[int, int], "", "must be a list of 2: a whole number, a whole number, got [1]"),
        ([1, 2, 3], tuple[int, int], "", "must be a list of 2: a whole number, a whole number, got [1, 2, 3]"),
        ([0, 1], tuple[Side, Side], "0", "must be a whole number of at least 1, got 0"),
        ({"a": {"b": "c"}}, dict[str, dict[str, float]], "a.b", "must be a number, got 'c'"),
        ("z", Literal["x", "y"], "", "must be one of x, y, got 'z'"),
        (1, Literal[True], "", "must be one of True, got 1"),
        (-1, Count, "", "must be a whole number of at least 0, got -1"),
        ({"rows": 1}, Row, "", "lacks 'name'"),
        ({"name": "a", "rows": -1}, Row, "rows", "must be a whole number of at least 0, got -1"),
        ({"name": "a", "rows": 1, "more": [["b"]]}, Row, "more.0", "must be a list of 2: text, a number, got ['b']"),
        ({"share": 1.0}, Loose, "", "lacks 'step'"),
        ({"step": "a"}, Loose, "step", "must be a whole number, got 'a'"),
        ([], Part, "", "must be a mapping, got []"),
        ({"target": "a", "colour": 1}, Part, "", "has a key 'colour', which nothing here knows"),
        ({"target": "a", "grid": [1, 0]}, Part, "grid.1", "must be a whole number of at least 1, got 0"),
        ({"a": "x" * 80}, dict[str, int], "a", f"must be a whole number, got '{'x' * 59}..."),
    ],
)
def test_what_does_not_fit_is_told_with_its_key(value, kind, key, what):
    assert document.problem(value, kind) == (key, what)


def test_the_file_and_the_key_are_named():
    with pytest.raises(DataError) as caught:
        document.fit({"name": "a", "rows": None}, Row, "/runs/a.json", DataError, "again")
    assert caught.value.what == "a.json is damaged: rows must be a whole number of at least 0, got None"
    assert (caught.value.at, caught.value.fix) == ("/runs/a.json  rows", "again")
    with pytest.raises(RunError) as caught:
        document.fit({"name": "a"}, Row, "/runs/a.json")
    assert (caught.value.what, caught.value.at) == ("a.json is damaged: it lacks 'rows'", "/runs/a.json")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "not valid JSON: Expecting property name"),
        ("9" * 5000, "not valid JSON: Exceeds the limit"),
        ("[" * 101 + "]" * 101, "nested more than 100 deep"),
        ('{"a":' * 100_000, "nested more than 100 deep"),
        (r'{"a": "\ud800"}', r"not valid JSON: '\ud800' is half a character"),
        (b"\xff", "not UTF-8 text: invalid start byte at byte 0"),
    ],
    ids=["cut", "digits", "deep", "deeper", "half", "bytes"],
)
def test_what_is_no_json_is_told(text, what):
    with pytest.raises(RunError) as caught:
        document.parse(text, "here")
    assert what in caught.value.what
    assert (caught.value.at, caught.value.fix) == ("here", document.FIX)


def test_what_is_json():
    assert document.parse("[" * 100 + "]" * 100, "here")
    brackets = {"a": "[" * 200, "b": '"' + "{" * 200, "c": "\\"}
    assert document.parse(json.dumps(brackets), "here") == brackets
    assert document.parse(r'"\ud83d\ude00"', "here") == "😀"
    with pytest.raises(RunError, match="nested too deep"):  # for large files nesting is not counted
        document.parse("[" * 100_000, "here", depth=None)


def test_files_of_a_value_and_of_lines(tmp_path):
    (tmp_path / "a.json").write_text('{"name": "a", "rows": 3}')
    assert files.read_json(tmp_path / "a.json", kind=Row) == {"name": "a", "rows": 3}
    (tmp_path / "a.jsonl").write_text('{"step": 1}\n\n{"step": 2}\n')
    assert files.read_jsonl(tmp_path / "a.jsonl", kind=Loose) == [{"step": 1}, {"step": 2}]
    (tmp_path / "a.jsonl").write_text('{"step": 1}\n{"step": []}\n')
    with pytest.raises(RunError) as caught:
        files.read_jsonl(tmp_path / "a.jsonl", fix="again", kind=Loose)
    assert caught.value.what == "a.jsonl:2 is damaged: step must be a whole number, got []"
    assert caught.value.at == f"{tmp_path}/a.jsonl:2  step"


@pytest.mark.parametrize(
    ("name", "what"), [("none.json", "No such file"), ("a\0b", "null byte"), ("latin.json", "not UTF-8 text")]
)
def test_files_that_cannot_be_read(tmp_path, name, what):
    (tmp_path / "latin.json").write_bytes(b'"\xe9"')
    for read in (files.read_json, files.read_jsonl):
        with pytest.raises(DataError) as caught:
            read(tmp_path / name, DataError, "this")
        assert what in caught.value.what
        assert caught.value.fix == "this"
