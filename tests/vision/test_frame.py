"""A patch shows the part of the picture that its frame says: read from the pixels that the encoder is given."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.vision import FITS, Frame
from mmalign.vision.hf import HFVision
from mmalign.vision.openclip import OpenCLIPVision
from mmalign.vision.picture import placed, square, upright_size
from mmalign.vision.s2 import S2
from mmalign.vision.timm import TimmVision
from tests.vision.tiny import KINDS

SIZES = [
    (300, 300),
    (400, 300),
    (300, 400),
    (600, 150),
    (150, 600),
    (7, 1000),
    (1000, 7),
    (333, 217),
    (31, 29),
    (1, 90),
]
CELLS = (8, 6)  # columns, rows


def hf(kind):
    return lambda folders, fit: HFVision(str(folders[kind]), fit=fit, image_size=125)


ENCODERS = {
    **{kind: hf(kind) for kind in KINDS if kind != "dinov3"},
    "siglip, margin": lambda folders, fit: HFVision(str(folders["siglip"]), fit=fit),
    "dinov2, margin": lambda folders, fit: HFVision(str(folders["dinov2"]), fit=fit),
    "dinov3": lambda folders, fit: HFVision(str(folders["dinov3"]), fit=fit),
    "clip, pil": lambda folders, fit: HFVision(str(folders["clip"]), fit=fit, image_size=125, pil=True),
    "timm": lambda folders, fit: TimmVision("test_vit", random=True, fit=fit),
    "timm, other": lambda folders, fit: TimmVision("vit_tiny_patch16_224", random=True, fit=fit),
    "open_clip": lambda folders, fit: OpenCLIPVision("ViT-B-32", random=True, fit=fit),
    "s2": lambda folders, fit: S2(HFVision(str(folders["clip"]), fit=fit, image_size=125), [1, 2]),
}


@pytest.fixture(scope="module")
def encoders(folders):
    return {(name, fit): make(folders, fit) for name, make in ENCODERS.items() for fit in (None, *FITS)}


def places(width, height):
    """A picture whose red says how far right a pixel is, whose green how far down; all blue is high."""
    x_W, y_H = ((np.arange(n) + 0.5) / n * 255 for n in (width, height))
    picture_HW3 = np.stack(np.broadcast_arrays(x_W[None, :], y_H[:, None], np.full((1, 1), 255.0)), -1)
    return Image.fromarray(picture_HW3.round().astype(np.uint8))


def cells(width, height):
    """8 x 6 cells, each of its own colour."""
    number_HW = np.arange(height)[:, None] * CELLS[1] // height * CELLS[0] + np.arange(width)[None] * CELLS[0] // width
    return Image.fromarray(palette()[number_HW])


def palette():
    levels = itertools.product((30, 90, 150, 210), (30, 90, 150, 210), (60, 140, 220))
    return np.array(list(levels), dtype=np.uint8)[: CELLS[0] * CELLS[1]]


def colours(vision, image):
    """colour_P3, 0 to 255, at the centre of each patch of what the encoder is given."""
    pixels_3SS = vision.pixels(image)
    side = 8
    white, black = (vision.pixels(Image.new("RGB", (side, side), (v, v, v)))[:, :1, :1] for v in (255, 0))
    seen_3SS = (pixels_3SS - black) / (white - black) * 255
    (rows, columns), patch = vision.grid, patch_side(vision)
    middle_H, middle_W = ((torch.arange(n) + 0.5) * patch for n in (rows, columns))
    low_H, low_W = ((middle - 0.5).floor().long() for middle in (middle_H, middle_W))
    around = [seen_3SS[:, low_H + dy][:, :, low_W + dx] for dy in (0, 1) for dx in (0, 1)]
    odd = patch % 2
    return (around[3] if odd else sum(around) / 4).flatten(1).T.numpy()


def patch_side(vision):
    """Pixels of a patch in what `pixels` gives."""
    if isinstance(vision, S2):
        return patch_side(vision.encoder) * vision.scales[-1]
    if isinstance(vision, HFVision):
        return vision.tower.config.patch_size
    return vision._reader.patch[0] if isinstance(vision, OpenCLIPVision) else vision.tower.patch_embed.patch_size[0]


@pytest.mark.parametrize("fit", [None, *FITS])
@pytest.mark.parametrize("name", ENCODERS)
def test_the_centre_of_each_patch_shows_what_the_frame_says(encoders, name, fit):
    vision = encoders[name, fit]
    for size in SIZES:
        frame = vision.frame(size)
        assert (frame.fit, frame.size, frame.grid) == (vision.fit, size, vision.grid)
        for (red, green, blue), (x0, y0, x1, y1) in zip(
            colours(vision, places(*size)), frame.patch_boxes(), strict=True
        ):
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            # half a pixel of what the encoder is given, one of the picture, whose edges resizing holds, one of 255
            slack = [
                0.5 * (end - start) / patch_side(vision) + 1 / n + 0.02
                for start, end, n in ((x0, x1, size[0]), (y0, y1, size[1]))
            ]
            if all(slack_ < at < 1 - slack_ for at, slack_ in zip((x, y), slack, strict=True)):
                assert blue > 200, (size, x, y)
                assert abs(red / 255 - x) <= slack[0], (size, x, y)
                assert abs(green / 255 - y) <= slack[1], (size, x, y)
            elif any(at < -slack_ or at > 1 + slack_ for at, slack_ in zip((x, y), slack, strict=True)):
                assert vision.fit == "pad"
                assert blue < 200, (size, x, y)  # the mean colour


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2", "timm, other"])
def test_coloured_cells_are_where_the_frame_says(encoders, name, fit):
    """All but the patches that lie on a border of cells; these have one of their neighbours' colours or a mixture."""
    vision = encoders[name, fit]
    told = 0
    for size in [(300, 300), (400, 300), (300, 400), (600, 150), (150, 600), (333, 217)]:
        boxes = vision.frame(size).patch_boxes()
        for colour, box in zip(colours(vision, cells(*size)), boxes, strict=True):
            here = {cell(*corner) for corner in itertools.product((box[0], box[2]), (box[1], box[3]))}
            if len(here) == 1 and None not in here:
                told += 1
                nearest = int(np.abs(palette().astype(float) - colour).sum(-1).argmin())
                assert {nearest} == here, (size, box)
    assert told > 80


def cell(x, y):
    inside = 0 < x < 1 and 0 < y < 1
    return int(y * CELLS[1]) * CELLS[0] + int(x * CELLS[0]) if inside else None


def slowly_onto(source, target):
    """From the definition, patch by patch."""
    index = []
    for box, share in zip(target.patch_boxes(), target.visible(), strict=True):
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        under = [n for n, (x0, y0, x1, y1) in enumerate(source.patch_boxes()) if x0 <= x < x1 and y0 <= y < y1]
        shown = share >= 0.5 and under and source.visible()[under[0]] >= 0.5 and 0 <= x <= 1 and 0 <= y <= 1
        index.append(under[0] if shown else -1)
    return index


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (211, 97), (100, 100), (40, 400)])
@pytest.mark.parametrize("fits", list(itertools.product(FITS, FITS)))
def test_onto_is_the_patch_under_the_centre(size, fits):
    source, target = (placed(fit, size, grid, 126) for fit, grid in zip(fits, ((7, 9), (6, 6)), strict=True))
    assert source.onto(target) == slowly_onto(source, target)
    assert placed(fits[0], size, (6, 6), 126).onto(target)[7] in (7, -1) or fits[0] != fits[1]


def test_half_of_a_4_to_3_picture_at_each_side_is_padding():
    frame = placed("pad", (400, 300), (24, 24), 336)
    assert frame.seen().count(False) == 6 * 24
    assert frame.region == (0, -1 / 6, 1, 7 / 6)
    assert frame.patch_at(0.51, 0.01) == 3 * 24 + 12
    assert frame.patch_at(0.51, 0.99) == 20 * 24 + 12
    assert frame.patch_at(0.5, -0.01) == frame.patch_at(1.01, 0.5) == -1
    assert frame.visible()[3 * 24] == pytest.approx(1)


def test_what_is_cropped_away_is_under_no_patch():
    frame = placed("crop", (400, 300), (24, 24), 336)
    assert frame.region == (pytest.approx(1 / 8), 0, pytest.approx(7 / 8), 1)
    assert frame.patch_at(0.1, 0.5) == -1
    assert all(frame.seen())


def test_a_patch_half_of_which_is_picture_has_a_word():
    frame = Frame("pad", (4, 2), (4, 4), (0.0, -0.5, 1.0, 1.5))
    assert frame.visible() == [0] * 4 + [1] * 8 + [0] * 4
    frame = Frame("pad", (4, 2), (1, 2), (-0.5, 0.0, 1.5, 1.0))
    assert (frame.visible(), frame.seen()) == ([0.5, 0.5], [True, True])
    assert Frame("pad", (4, 2), (1, 2), (-0.51, 0.0, 1.49, 1.0)).seen() == [False, True]


def test_a_turned_picture_has_the_size_that_is_seen():
    image = Image.new("RGB", (40, 30))
    image.getexif()[0x0112] = 6
    assert upright_size(image) == (30, 40)


def test_a_square_of_a_huge_picture_is_placed_as_it_is_reduced(monkeypatch):
    monkeypatch.setattr("mmalign.vision.picture.SQUARE", 50)
    frame = placed("pad", (333, 217), (5, 5), 125)
    red = np.asarray(square(Image.new("RGB", (333, 217), (255, 0, 0)), [0, 0, 0]))[..., 0] > 100
    rows = np.flatnonzero(red.any(1))
    assert frame.region[1] == pytest.approx(-rows[0] / len(rows))
    assert frame.region[3] == pytest.approx((len(red) - rows[0]) / len(rows))


def exactly(length, around, count):
    """The share of each of `count` strips of a padded square that shows picture, as fractions."""
    start = Fraction((around - length) // 2, around)
    end = start + Fraction(length, around)
    edges = [Fraction(number, count) for number in range(count + 1)]
    return [max(Fraction(0), min(b, end) - max(a, start)) * count for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("size", [(96, 48), (48, 96), (640, 320), (7, 14), (1000, 500), (333, 999), (400, 300)])
@pytest.mark.parametrize("side", [6, 18, 24, 27, 30])
def test_half_a_patch_of_picture_is_enough(size, side):
    """Whatever floating point makes of one half, where the edge of the picture cuts a patch in two."""
    columns, rows = (exactly(length, max(size), side) for length in size)
    seen = [2 * row * column >= 1 for row in rows for column in columns]
    assert placed("pad", size, (side, side), 14 * side).seen() == seen
