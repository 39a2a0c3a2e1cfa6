"""The contract every data set keeps, on two records that are whole and two that are not."""

import json

import pytest
from mmalign.errors import DataError
from mmalign.testing import check_data
from PIL import Image
from {{ module }} import {{ cls }}


def test_contract(tmp_path):
    for name, color in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (8, 8), color).save(tmp_path / name)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    rows = [{"image": f"{name}.png", "question": "What is this?", "answer": name} for name in ("a", "b")]
    lines = [*map(json.dumps, rows), '{"image": "a.png"}', '{"image":']
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    check_data(lambda: {{ cls }}(str(tmp_path)), unreadable=["none.png", "cut.png"], unusable=[2, 3])


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot read rows"):
        {{ cls }}(str(tmp_path))
