"""Any picture as 8-bit RGB, in the one way data sets and encoders share."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image


def rgb(image: "Image") -> "Image":
    """8-bit RGB. Transparency is dropped, not blended, as `convert` and so LLaVA do.

    Where LLaVA's `convert` turns 16-bit gray to white, the upper byte is kept.
    """
    image.info.pop("transparency", None)  # `convert` would warn, and drop it all the same
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    return image if image.mode == "RGB" else image.convert("RGB")


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
