"""Records are whole, and a missing image says so."""

import pytest
from mmalign.errors import DataError
from PIL import Image
from {{ module }} import {{ cls }}


def test_records(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    data = {{ cls }}(str(tmp_path))
    for record in data:
        assert record.caption
        for reference in record.images:
            assert data.image(reference).mode == "RGB"


def test_a_missing_image(tmp_path):
    with pytest.raises(DataError):
        {{ cls }}(str(tmp_path)).image("a.png")
