"""The lists of a large document: the same elements as a plain reader gives, wherever the file's pieces end."""

import json

import pytest

from mmalign.data import elements as module
from mmalign.data.elements import elements
from mmalign.errors import DataError

KEYS = ("a", "b")
ODD = {"x": 1.25, "names": ["ü", '"]}', "\\"], "deep": [[{"y": [1, 2]}]], "none": None}


def read(path, keys=KEYS):
    lists = {key: [] for key in keys}
    for key, first, batch in elements(path, keys):
        assert first == len(lists[key])
        lists[key] += batch
    return lists


def written(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_the_same_as_a_plain_reader(tmp_path, monkeypatch, block, indent):
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(module, "AT_ONCE", 3)
    document = {"info": {"a": []}, "b": [ODD] * 7, "licenses": [[], 12, "x"], "a": [1, 23, 4.5, [], {}, "é"], "n": 12}
    path = written(tmp_path, "\ufeff" + json.dumps(document, indent=indent, ensure_ascii=False) + "\n ")
    assert read(path) == {key: document[key] for key in KEYS}
    listed = written(tmp_path, json.dumps([ODD] * 5, indent=indent))
    assert read(listed, ("",)) == {"": [ODD] * 5}
    assert read(written(tmp_path, '{"a": [ ], "b": []}')) == {"a": [], "b": []}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "x.json: empty, near byte 0"),
        ("12", "x.json: neither a JSON object nor a list"),
        ("{}", "x.json has no list 'a'"),
        ('{"a": [1], "b": 2}', "x.json: b must be a list, and begins with '2'"),
        ('{"a": [1], "b": [2], "a": [3]}', "x.json: the key 'a' is given twice"),
        ('{"a": [1, 2', "x.json: cut off, near byte 11"),
        ('{"a": [{"x": 1, ', "x.json: not valid JSON: Expecting property name"),
        ('{"a": [1 2]}', "x.json: '2' where , or ] should be"),
        ('{"a": [1,]}', "x.json: not valid JSON: Expecting value"),
        ('{"a": [NaN]}', "x.json: NaN is no JSON"),
        ('{"a" [1]}', "x.json: '[' where : should be"),
        ("{a: [1]}", "x.json: 'a' where \" should be"),
        ('{"a": [1], "b": []} 3', "x.json: there is more behind the end of the document"),
        (b'{"a": ["\xff"]}', "x.json: not UTF-8 text: invalid start byte"),
        ('{"a": [' + "[" * 100_000, "x.json: nested too deep"),
        ('{"c": ' + "[" * 100_000, "x.json: nested too deep"),
        ("[1]", "x.json has no list 'a'"),
    ],
)
def test_what_is_no_such_document(tmp_path, text, what):
    path = written(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read(path)
    assert what in caught.value.what
    assert caught.value.at == str(path)
    assert caught.value.fix


def test_an_object_where_a_list_should_be(tmp_path):
    with pytest.raises(DataError, match="x.json is no list"):
        read(written(tmp_path, '{"a": []}'), ("",))


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"no file .*none.json"):
        read(tmp_path / "none.json")
    with pytest.raises(DataError, match=r"cannot read .*: Is a directory"):
        read(tmp_path)


def test_limits(tmp_path, monkeypatch):
    path = written(tmp_path, json.dumps({"a": ["x" * 5000], "b": []}))
    monkeypatch.setattr(module, "BLOCK", 16)
    assert len(read(path)["a"][0]) == 5000
    monkeypatch.setenv("MMALIGN_ROW_BYTES", "1K")
    with pytest.raises(DataError, match=r"an element of .*x.json has more than 1 KiB") as caught:
        read(path)
    assert "MMALIGN_ROW_BYTES=2K" in caught.value.fix
    monkeypatch.delenv("MMALIGN_ROW_BYTES")
    monkeypatch.setenv("MMALIGN_ROWS", "3")
    with pytest.raises(DataError, match="more than 3 rows"):
        read(written(tmp_path, '{"a": [1, 2, 3, 4], "b": []}'))
