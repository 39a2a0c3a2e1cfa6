"""Pictures as encoders need them: upright 8-bit RGB, square where asked for, none too long to resize."""

from collections.abc import Sequence

from PIL import ExifTags, ImageOps
from PIL import Image as Pillow
from PIL.Image import Image

from mmalign.io.pictures import rgb as plain

SQUARE = 8192  # pixels: larger squares are not made, the image is reduced first
LONG = 32  # an image longer than so many times its width loses its ends where a centre crop takes them anyway


def rgb(image: Image) -> Image:
    """The image upright (EXIF) and in 8-bit RGB, whatever it came in."""
    return plain(_upright(image))


def _upright(image: Image) -> Image:
    try:
        is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if is_turned else image
    except Exception:  # damaged EXIF, which Pillow meets with errors of five kinds, turns nothing
        return image


def square(image: Image, mean: Sequence[float]) -> Image:
    """An RGB image in the middle of a square of the mean colour (LLaVA-1.5, arXiv 2310.03744)."""
    if (factor := -(-max(image.size) // SQUARE)) > 1:
        image = image.reduce(factor)
    side = max(image.size)
    squared = Pillow.new("RGB", (side, side), tuple(int(255 * m) for m in mean))
    squared.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return squared


def middle(image: Image) -> Image:
    """The middle of a very long image. Resizing its short side to the encoder's would take gigabytes for the ends."""
    longest = min(image.size) * LONG
    if max(image.size) <= longest:
        return image
    left, top = (max(0, (side - longest) // 2) for side in image.size)
    return image.crop((left, top, left + min(image.width, longest), top + min(image.height, longest)))
