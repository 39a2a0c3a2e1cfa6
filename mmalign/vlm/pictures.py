"""Pictures as an encoder is shown them, and its pixels as pictures again.

Letters: B images, S pixels of a side.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from mmalign.errors import CheckError
from mmalign.vision import Vision

if TYPE_CHECKING:
    from PIL.Image import Image


def listed(images: Any) -> Sequence[Any]:
    """Images in their order, be it one or several."""
    return images if isinstance(images, Sequence) else [images]


def named(images: Any, names: Sequence[str] | None) -> "list[tuple[str, Image]]":
    """(name, image) of one or several; without names, their numbers. Raises CheckError where they differ in number."""
    pictures = listed(images)
    own = [str(number) for number in range(len(pictures))] if names is None else names
    if len(own) != len(pictures):
        raise CheckError(f"{len(own)} names of {len(pictures)} images", at="names", fix="a name for each image")
    return list(zip(own, pictures, strict=True))


def shown(vision: Vision, image: "Image") -> "Image":
    """The picture as the encoder is given it: cropped, padded and resized, its colours put back."""
    return pictures(vision, vision.pixels(image)[None])[0]


def pictures(vision: Vision, pixels_B3SS: Tensor) -> "list[Image]":
    """Pictures from an encoder's pixels, their colours put back, to within half a step of 255.

    An encoder's colours are (colour - mean) / deviation; black and white tell both.
    """
    from PIL import Image as Pillow

    side = (vision.image_size,) * 2
    low_3, high_3 = (vision.pixels(Pillow.new("RGB", side, (v, v, v))).mean((1, 2)) for v in (0, 255))
    pixels_B3SS = (pixels_B3SS.detach().float().cpu() - low_3[:, None, None]) / (high_3 - low_3)[:, None, None]
    shown_BSS3 = (pixels_B3SS.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Pillow.fromarray(np.ascontiguousarray(shown_SS3)) for shown_SS3 in shown_BSS3]
