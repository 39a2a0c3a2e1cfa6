"""Any picture as 8-bit RGB, in the one way data sets, benchmarks and encoders share: from bytes, base64 or a cell."""

import base64
import binascii
import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

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

EOI, SOS = b"\xff\xd9", b"\xff\xda"  # a JPEG's end, and the beginning of its pixels
LFS = b"version https://git-lfs.github.com/"
WEB = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")
EARLY = ("truncat", "Truncat", "end of", "could not create decoder object")  # how Pillow's plugins say it
SHOWN = 80  # characters of a text that stand in a message
# How the base64 of a picture begins, JPEG, PNG, GIF, WebP, TIFF, JPEG 2000 and AVIF; a path hardly does
BASE64 = re.compile(r"/9j/|_9j_|iVBORw0KGgo|R0lGOD[dl]h|UklGR|SUkqA|TU0AK|AAAADGpQ|AAAA[\w+/-]{2}Z0eX")
LEAST = 64  # characters of the base64 of any picture

Opener = tuple[Callable[..., Any], Callable[[bytes], bool | str]]


class PictureError(DataError):
    """A picture that cannot be read. reason: empty, html, truncated, broken, oversized, base64 or shape."""

    def __init__(self, reason: str, what: str, *, fix: str = "") -> None:
        super().__init__(what, fix=fix)
        self.reason = reason


def picture(data: bytes, name: str) -> "Image":
    """8-bit RGB, the first frame of several; PictureError with the reason. `name` stands in the message.

    Nothing is padded or repaired. The picture keeps its EXIF: whether to turn it upright is for the encoder to say,
    in training and evaluation alike.
    """
    return load_rgb(opened(data, name), name)


def opened(data: bytes, name: str) -> "Image":
    """The image with its format, mode and size known, and its pixels not yet decoded; PictureError with the reason."""
    _check_bytes(data, name)
    with _told(name):
        image = _recognized(data, name)
    if image.width * image.height > IMAGE_PIXELS.value:
        what = f"{name} has {image.width} x {image.height} pixels, and no more than {IMAGE_PIXELS.said} are decoded"
        raise PictureError("oversized", what, fix=IMAGE_PIXELS.fix)
    return image


def load_rgb(image: "Image", name: str) -> "Image":
    """The pixels of an opened image, in 8-bit RGB; PictureError with the reason."""
    load(image, name)
    with _told(name):
        return rgb(image)


def load(image: "Image", name: str) -> None:
    """Decode the pixels of an opened image, as they are stored; PictureError with the reason."""
    from PIL import ImageFile

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        what = "some library has set PIL.ImageFile.LOAD_TRUNCATED_IMAGES, which pads damaged images in silence"
        raise DataError(what, fix="set it back to False where that library is imported")
    with _told(name):
        image.load()


def of_cell(cell: Any) -> bytes | str | None:
    """What a table's cell holds of a picture: its bytes, else its path or URL, else None. PictureError otherwise.

    A cell is bytes, or a text that is base64 or a path, or {bytes, path} of these, as Hugging Face stores pictures.
    """
    if isinstance(cell, Mapping) and ("bytes" in cell or "path" in cell):
        data, path = cell.get("bytes"), cell.get("path")
        if isinstance(data, str) and not is_base64(data):
            raise PictureError("shape", f"an image's bytes are {short(data)}, which is no picture in base64")
        cell = path if data is None else data
    if cell is None or isinstance(cell, bytes):
        return _as_file(cell) if cell else cell
    if isinstance(cell, (bytearray, memoryview)):
        return _as_file(bytes(cell))
    if isinstance(cell, str):
        return from_base64(cell) if is_base64(cell) else cell
    raise PictureError("shape", f"an image is {short(cell)}, neither a path nor its bytes")


def _as_file(data: bytes) -> bytes:
    """The file in some bytes, which may be the base64 of one."""
    head = data[:LEAST].decode("latin-1")
    return from_base64(data.decode("latin-1")) if len(data) >= LEAST and BASE64.match(head) else data


def is_base64(text: str) -> bool:
    """Whether a text is a data: URL, or the base64 of a picture and no path."""
    if text[:5].lower() == "data:":
        return True
    text = text.lstrip() if text[:1].isspace() else text
    return len(text) >= LEAST and bool(BASE64.match(text)) and "." not in text[:SHOWN]


def from_base64(text: str) -> bytes:
    """The bytes in base64, or in `data:image/png;base64,...`; line breaks do not count. PictureError where it is none.

    Both alphabets are read, that of URLs, too.
    """
    written = text
    if text[:5].lower() == "data:":
        kind, comma, written = text.partition(",")
        if not comma or not kind.lower().endswith(";base64"):
            raise PictureError("base64", f"{short(text)} is no data:...;base64, URL")
    written = "".join(written.split())
    if "-" in written or "_" in written:  # the alphabet of URLs, where the padding is left out
        written = written.translate(_ALPHABET) + "=" * (-len(written) % 4)
    try:
        return base64.b64decode(written, validate=True)
    except (binascii.Error, ValueError) as err:
        raise PictureError("base64", f"{short(text)}: {err}") from err


_ALPHABET = str.maketrans("-_", "+/")


def short(reference: Any) -> str:
    """A reference as a message shows it."""
    text = reference if isinstance(reference, str) else repr(reference)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _check_bytes(data: bytes, name: str) -> None:
    """Refuse what can be refused by its bytes alone."""
    if not data:
        raise PictureError("empty", f"{name} has no bytes")
    if data.startswith(LFS):
        what = f"{name} is a pointer of Git LFS, not the picture"
        raise PictureError("broken", what, fix="fetch the pictures themselves: git lfs pull")
    if data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(WEB):
        raise PictureError("html", f"{name} is a web page: {data[:40]!r}", fix="fetch the image again")
    if data.startswith(b"\xff\xd8") and EOI not in data[-64:] and data.rfind(EOI) <= data.rfind(SOS):
        raise PictureError("truncated", f"{name} is a JPEG without an end; {len(data):,} bytes are left of it")


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Around Pillow's plugins and decoders, which raise some ten kinds of errors on damaged files."""
    try:
        yield
    except PictureError:
        raise
    except Exception as err:
        message = str(err) or type(err).__name__
        reason = "truncated" if any(word in message for word in EARLY) else "broken"
        raise PictureError(reason, f"{name}: {message}") from err


def _recognized(data: bytes, name: str) -> "Image":
    for factory, accepts in _openers():
        if accepts(data[:16]) is True:  # a text is Pillow's way to say that it was built without this format
            image: Image = factory(io.BytesIO(data), "")
            return image
    raise PictureError("broken", f"{name} begins with {data[:8]!r}, as no image format does that is read here")


@cache
def _openers() -> list[Opener]:
    from PIL import Image

    for module in FORMATS.values():
        import_module(f"PIL.{module}ImagePlugin")
    plugins = [Image.OPEN[name] for name in FORMATS if name in Image.OPEN]
    return [(factory, accepts) for factory, accepts in plugins if accepts]


def base64_png(image: "Image", side: int | None = None) -> str:
    """A picture as a page carries it: a PNG file in base64, RGB. side: pixels of its longer side at most; None: all."""
    shown = image.convert("RGB")  # a copy
    if side:
        shown.thumbnail((side, side))
    out = io.BytesIO()
    shown.save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


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
    import numpy as np  # only for such pictures
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
