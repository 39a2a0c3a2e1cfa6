"""Rows are found in JSON lists and JSONL of every shape, block by block, and damage is told."""

import json
import random

import numpy as np
import pytest

from mmalign.data import spans
from mmalign.errors import DataError

NASTY = ['"', "\\", "{", "}", "[", "]", ",", ":", "\n", " ", "é", "😀", "a"]


def value(draw, deep=0):
    kind = draw.random()
    if deep > 3 or kind < 0.5:
        return "".join(draw.choices(NASTY, k=draw.randint(0, 8)))
    if kind < 0.75:
        return [value(draw, deep + 1) for _ in range(draw.randint(0, 3))]
    return {f"k{n}": value(draw, deep + 1) for n in range(draw.randint(0, 3))}


def rows_of(path):
    data = path.read_bytes()
    return [data[start:end] for start, end in spans.find(path)[0]]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 1 << 21])
def test_lists_whatever_their_layout(tmp_path, monkeypatch, block):
    monkeypatch.setattr(spans, "BLOCK", block)
    draw, path = random.Random(block), tmp_path / "rows.json"
    for _ in range(100):
        rows = [{"id": n, "v": value(draw)} for n in range(draw.randint(0, 6))]
        layout = {"indent": draw.choice([None, 1]), "ensure_ascii": draw.random() < 0.5}
        text = json.dumps(rows, separators=draw.choice([None, (",", ":")]), **layout)
        path.write_text(draw.choice(["", "\ufeff", " \n"]) + text + draw.choice(["", "\n"]), encoding="utf-8")
        assert [json.loads(row) for row in rows_of(path)] == rows


@pytest.mark.parametrize("block", [1, 5, 1 << 21])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_blank_ones_do_not_count(tmp_path, monkeypatch, block, end):
    monkeypatch.setattr(spans, "BLOCK", block)
    draw, path = random.Random(block), tmp_path / "rows.jsonl"
    for _ in range(50):
        rows = [{"id": n, "texts": value(draw)} for n in range(draw.randint(1, 6))]
        blank = [draw.choices(["", "  ", "\t"], k=draw.randint(0, 2)) for _ in rows]
        lines = [line for some, row in zip(blank, rows) for line in [*some, json.dumps(row)]]
        path.write_bytes((draw.choice(["", "\ufeff"]) + end.join(lines) + draw.choice(["", end, end + end])).encode())
        assert [json.loads(row) for row in rows_of(path)] == rows


@pytest.mark.parametrize("text", ["", "\n", "[]", " [ ] \n"])
def test_nothing(tmp_path, text):
    (tmp_path / "x").write_text(text)
    assert len(spans.find(tmp_path / "x")[0]) == 0


@pytest.mark.parametrize("block", [1, 4, 1 << 21])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a"', "cut off in or behind row 1"),
        ('[{"a": 1}, {"a": "x', "cut off in or behind row 1"),
        ('[{"a": 1}', "cut off in or behind row 1"),
        ('[{"a": 1}, {"a": "x"", "b": 1}]', "in or behind row 1, or has a quote or bracket too many there"),
        ("[", "cut off in or behind row 0"),
        ('[{"a": 1}] [', "more behind the end"),
        ('[{"a": 1}]]', "more behind the end"),
        ('[{"a": 1}] x', "no object"),
        ('[{"a": 1}, ]', "a comma stands behind the last row"),
        ('[{"a": 1} {"a": 2}]', "no object"),
        ('[{"a": 1}{"a": 2}]', "no object"),
        ('[{"a": 1},, {"a": 2}]', "no object"),
        ('[{"a": 1}, 7, {"a": 2}]', "no object"),
        ('[{"a": 1}, "x", {"a": 2}]', "no object"),
        ('[null, {"a": 1}]', "no object"),
        ("[1, 2]", "no object"),
    ],
)
def test_what_is_no_list_of_objects(tmp_path, monkeypatch, block, text, message):
    monkeypatch.setattr(spans, "BLOCK", block)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=message):
        spans.find(tmp_path / "x.json")


def test_a_row_that_is_wrong_inside_is_still_a_row(tmp_path):
    (tmp_path / "x.json").write_text('[{"a": NaN}, {"a" 1}, [2], {"b": 3}]')
    assert [row.decode() for row in rows_of(tmp_path / "x.json")] == ['{"a": NaN}', '{"a" 1}', "[2]", '{"b": 3}']


def test_utf16(tmp_path):
    (tmp_path / "x.json").write_text('[{"a": 1}]', encoding="utf-16")
    with pytest.raises(DataError, match="UTF-16, not UTF-8"):
        spans.find(tmp_path / "x.json")


def test_the_index_is_kept_until_the_file_changes(tmp_path, cache, monkeypatch):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert spans.index([path]).span_N2.tolist() == [[0, 8], [9, 17]]
    assert len(list(cache.glob("spans-*"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(spans, "find", lambda _: pytest.fail("made again"))
        assert len(spans.index([path]).span_N2) == 2
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3}\n')
    assert len(spans.index([path]).span_N2) == 3


def test_a_damaged_index_is_made_again(tmp_path, cache):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n')
    spans.index([path])
    for file in cache.iterdir():
        file.write_bytes(b"\x93NUMPY")
    assert spans.index([path]).span_N2.tolist() == [[0, 8]]
    assert np.load(next(cache.glob("spans-*"))).tolist() == [[0, 8]]


def test_where_nothing_can_be_kept(tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file where the cache should be")
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "taken"))
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n')
    assert len(spans.index([tmp_path / "x.jsonl"]).span_N2) == 1
