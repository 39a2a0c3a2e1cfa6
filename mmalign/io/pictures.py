"""Any picture as 8-bit RGB, in the one way data sets, benchmarks and encoders share."""

import io
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from mmalign.errors import DataError
from mmalign.io.limits import IMAGE_PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image

# What is read, by content and never by name, and Pillow's module for it. Not EPS, which Pillow hands to Ghostscript
FORMATS = {
    "JPEG": "Jpeg", "PNG": "Png", "WEBP": "WebP", "GIF": "Gif", "BMP": "Bmp", "TIFF": "Tiff", "AVIF": "Avif",
    "JPEG2000": "Jpeg2K", "PPM": "Ppm",
}  # fmt: skip

ORIENTATION = 0x0112  # EXIF's tag

Opener = tuple[Callable[..., Any], Callable[[bytes], bool | str]]


class OversizedError(DataError):
    """A picture of more pixels than are decoded."""


def opened(data: bytes, name: str) -> "Image":
    """The image with its format, mode and size known, and its pixels not yet decoded. `name` stands in the message.

    OversizedError, DataError for what is no image, and whatever Pillow's plugins raise on a damaged one.
    """
    for factory, accepts in _openers():
        if accepts(data[:16]) is not True:  # a text is Pillow's way to say that it was built without this format
            continue
        image: Image = factory(io.BytesIO(data), "")
        if image.width * image.height > IMAGE_PIXELS.value:
            what = f"{name} has {image.width} x {image.height} pixels, and no more than {IMAGE_PIXELS.said} are decoded"
            raise OversizedError(what, fix=IMAGE_PIXELS.fix)
        return image
    raise DataError(f"{name} begins with {data[:8]!r}, as no image format does that is read here")


@cache
def _openers() -> list[Opener]:
    from PIL import Image

    for module in FORMATS.values():
        import_module(f"PIL.{module}ImagePlugin")
    plugins = [Image.OPEN[name] for name in FORMATS if name in Image.OPEN]
    return [(factory, accepts) for factory, accepts in plugins if accepts]


def rgb(image: "Image") -> "Image":
    """8-bit RGB. Transparency is dropped, not blended, as `convert` and so LLaVA do.

    Where LLaVA's `convert` turns 16-bit gray to white, the upper byte is kept.
    """
    image.info.pop("transparency", None)  # `convert` would warn, and drop it all the same
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def orientation(image: "Image") -> int:
    """EXIF's number for how a picture is to be turned upright, 2 to 8; 1: not at all, nor where its EXIF is damaged."""
    try:
        number = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF, which Pillow meets with errors of five kinds
        return 1
    return number if isinstance(number, int) and 2 <= number <= 8 else 1


def _eight_bits(image: "Image") -> "Image":
    """Gray of 16 or 32 bits. Mode I may hold 8-bit values, mode F numbers between 0 and 1."""
    from PIL import Image as Pillow

    gray_HW = np.nan_to_num(np.asarray(image).astype(np.float64))
    most = gray_HW.max(initial=0)
    if image.mode == "F":
        gray_HW *= 255 if most <= 1 else 1
    elif image.mode != "I" or most > 255:
        gray_HW /= 256
    made = Pillow.fromarray(gray_HW.clip(0, 255).astype(np.uint8))
    made.info = image.info
    return made
