"""Where an encoder says that its patches lie, against what its pixels show there."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmalign.vision import Frame, Vision

SIZES = ((96, 96), (96, 72), (72, 96), (160, 40), (40, 160), (61, 53))  # width, height


def frames_hold(vision: Vision, sizes: Sequence[tuple[int, int]] = SIZES) -> None:
    """`frame` tells the truth: pictures whose colours say where a pixel is, through `pixels`, read at patch centres.

    Exact to half a pixel of the encoder's input and one of the picture.
    """
    patches = _patch_sides(vision)
    sides = list(product(patches, patches))  # a patch's height and width, in pixels
    for size in sizes:
        frame = vision.frame(size)
        _declared(vision, frame, size)
        seen_3SS, shows_SS = _seen(vision, *size)
        faults = {pair: next(_faults(frame, seen_3SS, shows_SS, pair), None) for pair in sides}
        sides = [pair for pair, fault in faults.items() if fault is None]
        if not sides:  # the fault of the side with which most patches were right
            raise AssertionError(f"frame() is wrong: {max(cast(Iterable[tuple[int, str]], faults.values()))[1]}")


def _declared(vision: Vision, frame: Frame, size: tuple[int, int]) -> None:
    assert isinstance(frame, Frame), f"frame() is a {type(frame).__name__}, not a Frame"
    for what, value, declared in (
        ("size", frame.size, size), ("grid", frame.grid, tuple(vision.grid)), ("fit", frame.fit, vision.fit),
    ):  # fmt: skip
        assert value == declared, (
            f"the {what} of the frame of a {size[0]} x {size[1]} picture is {value}, not {declared}"
        )


def _patch_sides(vision: Vision) -> list[int]:
    """The sides in pixels that a patch may have: so many fit into the image, with less than one left over."""
    rows = max(vision.grid)
    return [side for side in range(1, vision.image_size + 1) if vision.image_size // side == rows] or [
        max(1, vision.image_size // rows)
    ]


def places(width: int, height: int, blue: int = 255) -> Image.Image:
    """A picture whose red says how far right a pixel is, whose green how far down."""
    x_W, y_H = ((np.arange(n) + 0.5) / n * 255 for n in (width, height))
    picture_HW3 = np.stack(np.broadcast_arrays(x_W[None, :], y_H[:, None], np.full((1, 1), float(blue))), -1)
    return Image.fromarray(picture_HW3.round().astype(np.uint8))


def _seen(vision: Vision, width: int, height: int) -> tuple[Tensor, Tensor]:
    """seen_3SS, 0 to 1, of a picture of places, and shows_SS: how much of a pixel is picture, 0 to 1."""
    white, black = (vision.pixels(Image.new("RGB", (8, 8), (v, v, v)))[:, :1, :1] for v in (255, 0))
    with_3SS, without_3SS = (vision.pixels(places(width, height, blue)) for blue in (255, 0))
    return (with_3SS - black) / (white - black), ((with_3SS - without_3SS) / (white - black))[2]


def _faults(frame: Frame, seen_3SS: Tensor, shows_SS: Tensor, patch: tuple[int, int]) -> Iterator[tuple[int, str]]:
    """(patch, what is wrong) where the centre of a patch of so many pixels shows not what the frame says."""
    (rows, columns), (width, height) = frame.grid, frame.size
    layers_4SS = torch.cat([seen_3SS, shows_SS[None]])
    at_4HW = _centres(_centres(layers_4SS, rows, patch[0], 1), columns, patch[1], 2)
    for number, (x0, y0, x1, y1) in enumerate(frame.patch_boxes()):
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        red, green, _, shows = at_4HW[:, number // columns, number % columns].tolist()
        slack_x, slack_y = (
            0.5 * (x1 - x0) / patch[1] + 1 / width + 0.02,
            0.5 * (y1 - y0) / patch[0] + 1 / height + 0.02,
        )
        said = f"patch {number} of a {width} x {height} picture shows ({x:.2f}, {y:.2f})"
        if slack_x < x < 1 - slack_x and slack_y < y < 1 - slack_y:
            if shows < 0.9:
                yield number, f"{said}, and its pixels show no picture"
            elif abs(red - x) > slack_x or abs(green - y) > slack_y:
                yield number, f"{said}, and its pixels ({red:.2f}, {green:.2f})"
        elif not (-slack_x < x < 1 + slack_x and -slack_y < y < 1 + slack_y) and shows > 0.1:
            yield number, f"{said}, which is outside, and its pixels show picture"


def _centres(pixels: Tensor, count: int, patch: int, axis: int) -> Tensor:
    """Along an axis, what lies at the centres of `count` patches of `patch` pixels; between two pixels, their mean."""
    middle = (np.arange(count) + 0.5) * patch - 0.5
    low, high = (torch.from_numpy(rounded(middle).astype(np.int64)) for rounded in (np.floor, np.ceil))
    return (pixels.index_select(axis, low) + pixels.index_select(axis, high)) / 2
