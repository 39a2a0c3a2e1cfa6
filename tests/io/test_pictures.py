"""How a picture is to be turned upright, by its EXIF."""

import io

import pytest
from PIL import Image

from mmalign.io import pictures


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
