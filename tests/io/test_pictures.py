"""How a picture is to be turned upright, by its EXIF."""

import base64
import io

import pytest
from PIL import Image

from mmalign.io import pictures
from mmalign.io.pictures import PictureError


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_how_a_picture_is_to_be_turned(number):
    exif = Image.Exif()
    exif[0x0112] = number
    out = io.BytesIO()
    Image.new("RGB", (8, 4)).save(out, "JPEG", exif=exif)
    picture = pictures.opened(out.getvalue(), "a.jpg")
    assert pictures.orientation(picture) == (number if number in range(2, 9) else 1)
    assert pictures.orientation(pictures.rgb(picture)) == pictures.orientation(picture)


def test_damaged_exif_turns_nothing():
    picture = Image.new("RGB", (8, 4))
    picture.info["exif"] = b"Exif\0\0no"
    assert pictures.orientation(picture) == 1


def file(format_="PNG", size=(8, 4)):
    out = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(out, format_)
    return out.getvalue()


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "JPEG2000", "AVIF"])
def test_base64_of_a_picture_is_known_by_its_first_letters(format_):
    data = file(format_)
    text = base64.b64encode(data).decode()
    lines, of_urls = base64.encodebytes(data), base64.urlsafe_b64encode(data)
    for cell in (data, text, text.encode(), lines, of_urls, of_urls.decode(), memoryview(data), bytearray(data),
                 f"data:image/x;base64,{text}", {"bytes": data, "path": "x.jpg"}, {"bytes": text}):  # fmt: skip
        assert pictures.of_cell(cell) == data
    assert pictures.picture(data, "x").mode == "RGB"


@pytest.mark.parametrize("path", ["a.jpg", "/9j/a.jpg", "iVBORw0KGgo", "images/UklGR" + "a" * 80, "x" * 200, ""])
def test_paths_are_no_base64(path):
    assert pictures.of_cell(path) == path
    assert pictures.of_cell({"bytes": None, "path": path}) == path


@pytest.mark.parametrize(
    ("cell", "reason"),
    [(7, "shape"), ([1], "shape"), ({"x": 1}, "shape"), ({"bytes": "text"}, "shape"), ({"bytes": 7}, "shape"),
     ("data:image/png;base64,a", "base64"), ("data:image/png,a", "base64"), ("/9j/" + "a" * 79, "base64")],
)  # fmt: skip
def test_cells_that_hold_no_picture(cell, reason):
    with pytest.raises(PictureError) as caught:
        pictures.of_cell(cell)
    assert caught.value.reason == reason


def test_cells_of_nothing():
    assert pictures.of_cell(None) is pictures.of_cell({"bytes": None, "path": None}) is None
    assert pictures.of_cell(b"") == b""


@pytest.mark.parametrize(("data", "reason"), [(b"", "empty"), (b"<html>", "html"), (b"text", "broken")])
def test_what_is_no_picture(data, reason):
    with pytest.raises(PictureError) as caught:
        pictures.picture(data, "x")
    assert caught.value.reason == reason
