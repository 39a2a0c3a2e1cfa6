"""Rows in JSON documents that are objects, block by block, beside what json.loads finds."""

import json
import random

import pytest

from mmalign.data import elements, spans
from tests.data.test_spans import rows_of, value


def rows(draw, count):
    return [{"id": n, "conversations": value(draw), "v": value(draw)} for n in range(count)]


def texts(draw, documents):
    layout = {"indent": draw.choice([None, 1]), "ensure_ascii": draw.random() < 0.5}
    return draw.choice(["", "\ufeff", " \n"]) + "\n".join(json.dumps(one, **layout) for one in documents)


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
def test_lists_inside_objects(tmp_path, monkeypatch, block):
    monkeypatch.setattr(elements, "BLOCK", block)
    draw, path = random.Random(block), tmp_path / "x.json"
    for _ in range(40):
        inside = rows(draw, draw.randint(1, 5))
        beside = {f"k{n}": "".join(draw.choices('[]{}\\"é😀,', k=5)) for n in range(draw.randint(0, 3))}
        document = draw.choice(
            [{**beside, "data": inside}, {"data": inside, **beside}, {"a": {"rows": inside, **beside}}]
        )
        path.write_text(texts(draw, [document]), encoding="utf-8")
        assert [json.loads(row) for row in rows_of(path)] == inside
        assert [name.rpartition(".")[2] for name in spans.find(path)[1]] == list(beside)


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_one_object_behind_the_other(tmp_path, monkeypatch, block):
    monkeypatch.setattr(elements, "BLOCK", block)
    draw, path = random.Random(block), tmp_path / "x.json"
    for _ in range(40):
        some = rows(draw, draw.randint(1, 4))
        path.write_text(texts(draw, some), encoding="utf-8")
        assert [json.loads(row) for row in rows_of(path)] == some


def test_rows_that_are_wrong_inside_are_still_rows(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"data": [{"a": NaN}, {"a": 1, "a": 2}, {"b": "\t"}]}')
    assert [row.decode() for row in rows_of(path)] == ['{"a": NaN}', '{"a": 1, "a": 2}', '{"b": "\t"}']


def test_a_first_line_longer_than_is_looked_at(tmp_path, monkeypatch):
    from mmalign.data import wrapped

    monkeypatch.setattr(wrapped, "LINE", 8)
    path = tmp_path / "x.json"
    for some in (rows(random.Random(3), 3), rows(random.Random(4), 1)):
        path.write_text("\n".join(map(json.dumps, some)))
        assert [json.loads(row) for row in rows_of(path)] == some
        path.write_text(json.dumps({"data": some}))
        assert [json.loads(row) for row in rows_of(path)] == some
