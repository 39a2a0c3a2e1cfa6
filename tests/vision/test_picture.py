"""Images of every kind become the same RGB; squares are LLaVA's; very long images cost no gigabytes."""

import io

import numpy as np
import pytest
from PIL import Image

from mmalign.data import decode
from mmalign.vision import picture
from mmalign.vision.frame import Frame
from mmalign.vision.picture import covered, middle, rgb, square
from tests.vision import tiny


def gray(values, mode):
    types = {"I;16": np.uint16, "I;16B": ">u2", "I": np.int32, "F": np.float32}
    array = np.array([values], dtype=types[mode])
    if mode == "I;16B":
        return Image.frombytes("I;16B", (array.shape[1], 1), array.tobytes())
    return Image.fromarray(array)


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("I;16", [0, 255, 256, 32768, 65535], [0, 0, 1, 128, 255]),
        ("I;16B", [0, 255, 256, 32768, 65535], [0, 0, 1, 128, 255]),
        ("I", [0, 256, 65535, 70000], [0, 1, 255, 255]),
        ("I", [0, 100, 255], [0, 100, 255]),  # 8-bit values in a wide mode
        ("F", [0.0, 0.5, 1.0], [0, 127, 255]),
        ("F", [0.0, 128.0, 300.0], [0, 128, 255]),
        ("F", [0.0, float("nan"), 1.0], [0, 0, 255]),
    ],
)
def test_gray_of_more_than_8_bits(mode, values, expected):
    image = gray(values, mode)
    assert image.mode == mode
    assert np.asarray(rgb(image))[0].tolist() == [[v] * 3 for v in expected]


def test_16_bit_gray_files_keep_their_tones():
    """Pillow's own conversion would turn all of them white."""
    file = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 256, dtype=np.uint16)[None]).save(file, "PNG")
    image = Image.open(file)
    assert np.asarray(rgb(image))[0, :, 0].tolist() == list(range(256))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_other_modes_are_what_pillow_makes_of_them(mode):
    image = tiny.picture().convert("RGBA").convert("P").convert("PA") if mode == "PA" else None
    image = image or tiny.picture().convert("RGB").convert("L" if mode == "LA" else mode if mode != "LAB" else "RGB")
    image = image.convert("LA") if mode == "LA" else image
    assert rgb(image).mode == "RGB"
    assert rgb(image).tobytes() == image.convert("RGB").tobytes()


def test_transparency_is_dropped_not_blended():
    image = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert rgb(image).getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize("exif", [b"Exif\0\0no tiff at all", b"Exif\0\0MM\0*", b"Exif\0\0II*\0\xff\xff\xff\xff"])
@pytest.mark.parametrize(("mode", "kind"), [("RGB", "PNG"), ("L", "JPEG"), ("RGB", "JPEG")])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_turns_nothing(exif, mode, kind):
    """`mmalign data check` passes such images, so they may not stop a training."""
    file = io.BytesIO()
    Image.new(mode, (4, 2)).save(file, kind, exif=exif)
    assert rgb(decode.picture(file.getvalue(), "x")).size == (4, 2)


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation(turn):
    """Eight ways a camera can be held; upright is upright."""
    upright = Image.new("RGB", (4, 2), (0, 0, 0))
    upright.putpixel((0, 0), (255, 0, 0))
    upright.putpixel((3, 0), (0, 255, 0))
    steps = Image.Transpose
    back = [None, steps.FLIP_LEFT_RIGHT, steps.ROTATE_180, steps.FLIP_TOP_BOTTOM]
    back += [steps.TRANSPOSE, steps.ROTATE_90, steps.TRANSVERSE, steps.ROTATE_270]
    held = upright if back[turn - 1] is None else upright.transpose(back[turn - 1])
    exif = Image.Exif()
    exif[0x0112] = turn
    file = io.BytesIO()
    held.save(file, "PNG", exif=exif)
    image = rgb(Image.open(file))
    assert image.size == (4, 2)
    assert image.tobytes() == upright.tobytes()


def test_rgb_is_not_copied():
    image = tiny.picture()
    assert rgb(image) is image


def by_hand(image, mean):
    """LLaVA's padding in loops: the mean colour, cut to whole numbers, and the image in the middle."""
    side = max(image.size)
    squared = np.empty((side, side, 3), dtype=np.uint8)
    for channel in range(3):
        squared[..., channel] = int(mean[channel] * 255)
    top, left = (side - image.height) // 2, (side - image.width) // 2
    for y in range(image.height):
        for x in range(image.width):
            squared[top + y, left + x] = image.getpixel((x, y))
    return squared


@pytest.mark.parametrize("size", [(5, 3), (3, 5), (4, 1), (1, 1), (7, 7), (8, 3)])
def test_squares_are_llavas(size):
    mean = [0.48145466, 0.4578275, 0.40821073]
    image = tiny.picture(*size)
    assert (np.asarray(square(image, mean)) == by_hand(image, mean)).all()


def test_squares_that_would_be_huge_are_made_smaller(monkeypatch):
    monkeypatch.setattr(picture, "SQUARE", 100)
    squared = square(tiny.picture(250, 2), [0, 0, 0])
    assert squared.size == (84, 84)  # reduced three times
    assert square(tiny.picture(100, 2), [0, 0, 0]).size == (100, 100)


@pytest.mark.parametrize(("size", "kept"), [((1000, 10), (320, 10)), ((10, 1000), (10, 320)), ((320, 10), (320, 10))])
def test_the_middle_of_very_long_images(size, kept):
    image = Image.new("RGB", size)
    at = (size[0] // 2, size[1] // 2)
    image.putpixel(at, (255, 0, 0))
    cropped = middle(image)
    assert cropped.size == kept
    assert cropped.getpixel((kept[0] // 2, kept[1] // 2)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 40), (40, 3), (2000, 2), (2, 2000)])
@pytest.mark.parametrize("settings", [{}, {"fit": "pad"}])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_encoders_take_every_shape(kind, settings, size, folders):
    vision = tiny.encoder(folders[kind], **settings)
    pixels_3SS = vision.pixels(tiny.picture(*size))
    assert pixels_3SS.shape == (3, vision.image_size, vision.image_size)
    assert pixels_3SS.isfinite().all()


def test_what_a_centre_crop_takes_away_may_go_before(folders):
    """`middle` changes nothing a processor with a centre crop keeps."""
    vision = tiny.encoder(folders["clip"])
    image = tiny.picture(30 * 40, 30)
    expected = vision.processor(images=image, return_tensors="pt")["pixel_values"][0]
    assert middle(image).width == 960
    assert (vision.pixels(image) - expected).abs().max() < 1e-6


def test_padding_comes_before_the_processor(folders):
    vision = tiny.encoder(folders["clip"], fit="pad")
    image = tiny.picture(50, 20)
    squared = Image.fromarray(by_hand(image, vision.processor.image_mean))
    expected = vision.processor(images=squared, return_tensors="pt")["pixel_values"][0]
    assert (vision.pixels(image) == expected).all()


def test_what_patches_cover_of_a_picture():
    image = tiny.picture(60, 40)
    wide = covered(image, Frame("pad", (60, 40), (6, 6), (0.0, -0.25, 1.0, 1.25)), 600)
    assert wide.size == (60, 60)
    assert wide.crop((0, 10, 60, 50)).tobytes() == image.tobytes()
    assert {wide.getpixel((x, y)) for x in (0, 59) for y in (0, 9, 50, 59)} == {(128, 128, 128)}
    middle_ = covered(image, Frame("crop", (60, 40), (6, 6), (1 / 6, 0.0, 5 / 6, 1.0)), 600)
    assert middle_.tobytes() == image.crop((10, 0, 50, 40)).tobytes()
    assert covered(image, Frame("squash", (60, 40), (6, 6)), 30).size == (30, 20)
