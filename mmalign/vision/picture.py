"""Pictures as encoders need them: upright 8-bit RGB, square where asked for, none too long to resize."""

from collections.abc import Callable, Sequence

from PIL import ExifTags, ImageOps
from PIL import Image as Pillow
from PIL.Image import Image

from mmalign.io.pictures import rgb as plain
from mmalign.vision.frame import Fit, Frame

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


def covered(image: Image, frame: Frame, side: int) -> Image:
    """What a frame's patches cover of an upright RGB image, no longer than `side` pixels; gray beyond its edges."""
    (width, height), (x0, y0, x1, y1) = image.size, frame.region
    left, top, right, bottom = round(x0 * width), round(y0 * height), round(x1 * width), round(y1 * height)
    shown = Pillow.new("RGB", (max(1, right - left), max(1, bottom - top)), (128, 128, 128))
    shown.paste(image, (-left, -top))
    shown.thumbnail((side, side))
    return shown


def upright_size(image: Image) -> tuple[int, int]:
    """(width, height) of what `rgb` makes of an image."""
    return _upright(image).size


def fitted(image: Image, fit: str, mean: Sequence[float]) -> Image:
    """An RGB image as it is resized under a fit: a square for `pad`; for `crop`, no longer than need be."""
    return square(image, mean) if fit == "pad" else middle(image) if fit == "crop" else image


def middle(image: Image) -> Image:
    """The middle of a very long image: resizing its short side to the encoder's would take gigabytes for the ends."""
    box = _middle(image.size)
    return image if box == (0, 0, *image.size) else image.crop(box)


def placed(
    fit: Fit, size: tuple[int, int], grid: tuple[int, int], side: int, short: int | None = None,
    half: Callable[[int], int] = lambda pixels: pixels // 2,
) -> Frame:  # fmt: skip
    """Where the patches of a square of `side` pixels lie in a picture of `size` that was `fitted`, resized and cut.

    short: under `crop`, the shorter side before the cut, to which pictures are resized, the longer to a whole number;
    None: `side`. half: of what is too much, the pixels cut from the left and the top; libraries round it differently.
    """
    if fit == "pad":
        factor = _factor(size)
        shown = (-(-size[0] // factor), -(-size[1] // factor))
        around, corner = _centred(shown)
        return Frame.resized(fit, size, grid, around, shown, corner)
    if fit == "squash":
        return Frame(fit, size, grid)
    left, top, right, bottom = box = _middle(size)
    part, short = (right - left, bottom - top), short or side
    width, height = (short if length == min(part) else int(short * length / min(part)) for length in part)
    corner = (-half(width - side), -half(height - side))
    return Frame.resized(fit, part, grid, side, (width, height), corner).of_part(size, box)


def halved(pixels: int) -> int:
    """Half of what is too much, as torchvision's centre crop rounds it."""
    return round(pixels / 2)


def square(image: Image, mean: Sequence[float]) -> Image:
    """An RGB image in the middle of a square of the mean colour (LLaVA-1.5, arXiv 2310.03744)."""
    if (factor := _factor(image.size)) > 1:
        image = image.reduce(factor)
    side, corner = _centred(image.size)
    padded = Pillow.new("RGB", (side, side), tuple(int(255 * m) for m in mean))
    padded.paste(image, corner)
    return padded


def _factor(size: tuple[int, int]) -> int:
    return -(-max(size) // SQUARE)


def _centred(size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """The side of the square around a picture, and where in it the picture's corner is."""
    side = max(size)
    return side, ((side - size[0]) // 2, (side - size[1]) // 2)


def _middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what a centre crop may look at."""
    longest = min(size) * LONG
    left, top = (max(0, (side - longest) // 2) for side in size)
    return (left, top, left + min(size[0], longest), top + min(size[1], longest))
