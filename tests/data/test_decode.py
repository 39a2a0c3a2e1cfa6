"""Every way a picture may be stored becomes 8-bit RGB, or a reason."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from mmalign.data import decode
from mmalign.data.reasons import Unusable
from mmalign.errors import DataError
from tests.data.samples import encode, is_picture, jpeg, picture, png, png_header


@pytest.mark.parametrize("format_", ["PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG", "AVIF", "JPEG2000"])
def test_formats_are_told_by_content(format_):
    image = decode.picture(encode(picture(), format_), "named.jpg")
    assert is_picture(image, 0, format_)


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "CMYK"])
@pytest.mark.filterwarnings("error")
def test_modes_become_what_convert_makes_of_them(mode):
    image = picture().convert(mode)
    data = encode(image, "TIFF" if mode == "CMYK" else "PNG")
    assert decode.picture(data, "x").tobytes() == image.convert("RGB").tobytes()


@pytest.mark.filterwarnings("error")
def test_transparency_is_dropped_not_blended():
    image = picture().convert("RGBA")
    image.putalpha(0)
    assert is_picture(decode.picture(encode(image, "PNG"), "x"))
    palette = picture().convert("P")
    data = encode(palette, "PNG", transparency=bytes(range(256)))
    assert decode.picture(data, "x").tobytes() == palette.convert("RGB").tobytes()


def test_sixteen_bits_keep_the_upper_byte():
    gray = np.array([[0, 255, 256, 0x7FFF, 0x8000, 0xFFFF]], np.uint16)
    image = decode.picture(encode(Image.fromarray(gray), "PNG"), "x")
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 127, 128, 255]


def test_thirty_two_bits():
    small = np.array([[0, 100, 255]], np.int32)
    assert np.asarray(decode.picture(encode(Image.fromarray(small), "TIFF"), "x"))[0, :, 0].tolist() == [0, 100, 255]
    shares = np.array([[0, 0.5, 1, np.nan]], np.float32)
    image = decode.picture(encode(Image.fromarray(shares), "TIFF"), "x")
    assert np.asarray(image)[0, :, 0].tolist() == [0, 127, 255, 0]


def test_the_first_frame_of_several():
    frames = [picture(seed=n).convert("P") for n in range(3)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode.picture(data, "x").tobytes() == frames[0].convert("RGB").tobytes()


def test_exif_stays_with_the_picture_which_is_not_turned():
    exif = Image.Exif()
    exif[274] = 6
    image = decode.picture(encode(picture(), "JPEG", exif=exif), "x")
    assert image.size == (24, 16)
    assert image.getexif()[274] == 6


@pytest.mark.parametrize(
    ("data", "reason", "message"),
    [
        (b"", "empty", "x.jpg has no bytes"),
        (b"<!DOCTYPE html><html>404", "html", "x.jpg is a web page: b'<!DOCTYPE"),
        (b"\xef\xbb\xbf\n <HTML>", "html", "web page"),
        (b"<?xml version='1.0'?><Error/>", "html", "web page"),
        (b"not an image", "broken", "begins with b'not an i'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "broken", "as no image format does"),  # never handed to Ghostscript
        (png_header(30_000, 30_000), "oversized", "30000 x 30000 pixels, and no more than 178,956,970"),
        (png_header(60_000, 60_000), "oversized", "60000 x 60000"),
        (png_header(2**31 - 1, 2**31 - 1), "oversized", "2147483647 x 2147483647"),
        (jpeg()[:-2], "truncated", "a JPEG without an end"),
        (jpeg()[:-200] + bytes(200), "truncated", "a JPEG without an end"),  # space reserved, the rest never came
        (encode(picture(), "WEBP")[:-9], "truncated", "could not create decoder"),
        (encode(picture(), "BMP")[:-9], "truncated", "truncated"),
        (png()[:200], "truncated", "truncated"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "broken", "x.jpg"),
        (b"\xff\xd8\xff\xd9", "broken", "x.jpg"),
    ],
)
def test_reasons(data, reason, message):
    with pytest.raises(Unusable) as caught:
        decode.picture(data, "x.jpg")
    assert caught.value.reason == reason, caught.value.what
    assert message in caught.value.what


@pytest.mark.parametrize("progressive", [False, True])
def test_no_jpeg_is_padded_wherever_it_ends(progressive):
    data = encode(picture((64, 48)), "JPEG", progressive=progressive)
    for end in range(2, len(data), 7):
        with pytest.raises(Unusable):
            decode.picture(data[:end], "x")


def test_a_preview_inside_does_not_pass_for_the_end():
    inner = jpeg(1)
    whole = encode(picture((64, 48)), "JPEG", comment=inner)
    assert decode.picture(whole, "x").size == (64, 48)
    with pytest.raises(Unusable, match="truncated"):
        decode.picture(whole[:-100] + bytes(100), "x")


def test_bytes_behind_the_end_do_no_harm():
    assert is_picture(decode.picture(jpeg() + bytes(500), "x"), 0, "JPEG")


def test_nobody_may_switch_padding_on(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError, match=r"set PIL.ImageFile.LOAD_TRUNCATED_IMAGES, which pads damaged images"):
        decode.picture(jpeg(), "x")


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"]),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=12),
    st.integers(0, 2000),
)
@pytest.mark.filterwarnings("ignore")
def test_nothing_else_is_raised(format_, changes, end):
    data = bytearray(encode(picture((9, 7)), format_)[: end or None])
    for index, byte in changes:
        if index < len(data):
            data[index] = byte
    with contextlib.suppress(Unusable):
        assert decode.picture(bytes(data), "x").mode == "RGB"
