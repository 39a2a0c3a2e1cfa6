"""Large things that honest people have are read: photographs, long files, many rows."""

import io
import json

import numpy as np
import pytest
from mmalign.cli.images import open_rgb
from PIL import Image

from mmalign.benchmarks.layouts import DataLocation
from mmalign.benchmarks.pictures import Pictures
from mmalign.data import decode
from mmalign.data.conversations import Conversations
from mmalign.io.limits import IMAGE_BYTES, IMAGE_PIXELS, ROWS
from tests.data.samples import row


@pytest.mark.filterwarnings("error")
def test_a_photograph_of_100_megapixels(tmp_path):
    """What a camera of medium format makes: 11,648 x 8,736."""
    out = io.BytesIO()
    Image.new("RGB", (11_648, 8_736), (9, 99, 199)).save(out, "JPEG", quality=50)
    (tmp_path / "x.jpg").write_bytes(out.getvalue())
    assert decode.picture(out.getvalue(), "x").size == (11_648, 8_736)
    assert Pictures(DataLocation(str(tmp_path)), ()).open("x.jpg").size == (11_648, 8_736)
    assert open_rgb(tmp_path / "x.jpg").size == (11_648, 8_736)
    assert IMAGE_PIXELS.value > 1.5 * 11_648 * 8_736


def test_a_jpeg_of_24_mb(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (4_700, 5_400, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "JPEG", quality=92)
    assert len(out.getvalue()) > 24e6
    assert decode.picture(out.getvalue(), "x").size == (5_400, 4_700)
    assert IMAGE_BYTES.value > 10 * len(out.getvalue())


@pytest.mark.slow
def test_a_json_of_1_gb_with_665_thousand_rows(tmp_path):
    """As LLaVA-1.5's: 1.03 GB, 665,298 rows in one list."""
    text = json.dumps(row("000000033471", "coco/train2017/000000033471.jpg", answer="word " * 270)).encode()
    with open(tmp_path / "x.json", "wb") as target:
        target.write(b"[" + text)
        for _ in range(665):
            target.write((b",\n" + text) * 1000)
        target.write(b"]")
    assert (tmp_path / "x.json").stat().st_size > 1e9
    data = Conversations(str(tmp_path / "x.json"), str(tmp_path))
    assert len(data) == 665_001
    assert data[665_000].id == "000000033471@665000"
    assert ROWS.value > 50 * len(data)
