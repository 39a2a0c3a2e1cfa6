"""From an image file's bytes to a whole 8-bit RGB picture, or the reason why there is none."""

from typing import TYPE_CHECKING

from mmalign.data.reasons import Unusable
from mmalign.errors import DataError
from mmalign.io import pictures

if TYPE_CHECKING:
    from PIL.Image import Image

EOI, SOS = b"\xff\xd9", b"\xff\xda"  # a JPEG's end, and the beginning of its pixels
WEB = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")
EARLY = ("truncat", "Truncat", "end of", "could not create decoder object")  # how Pillow's plugins say it


def picture(data: bytes, name: str) -> "Image":
    """8-bit RGB, the first frame of several; Unusable with the reason. `name` stands in the message.

    Nothing is padded or repaired. The picture keeps its EXIF: whether to turn it upright is for the encoder to say,
    in training and evaluation alike.
    """
    return load_rgb(open_image(data, name), name)


def open_image(data: bytes, name: str) -> "Image":
    """The image with its format, mode and size known, and its pixels not yet decoded; Unusable with the reason."""
    _check_bytes(data, name)
    try:
        return pictures.opened(data, name)
    except pictures.OversizedError as err:
        raise Unusable("oversized", err.what, fix=err.fix) from err
    except DataError as err:
        raise Unusable("broken", err.what) from err
    except Exception as err:  # Pillow's plugins raise some ten kinds of errors on damaged files
        raise _unusable(err, name) from err


def load_rgb(image: "Image", name: str) -> "Image":
    """The pixels of an opened image, in 8-bit RGB; Unusable with the reason."""
    from PIL import ImageFile

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        what = "some library has set PIL.ImageFile.LOAD_TRUNCATED_IMAGES, which pads damaged images in silence"
        raise DataError(what, fix="set it back to False where that library is imported")
    try:
        image.load()
        return pictures.rgb(image)
    except Exception as err:  # Pillow's decoders raise some ten kinds of errors on damaged files
        raise _unusable(err, name) from err


def _check_bytes(data: bytes, name: str) -> None:
    """Refuse what can be refused by its bytes alone."""
    if not data:
        raise Unusable("empty", f"{name} has no bytes")
    if data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(WEB):
        raise Unusable("html", f"{name} is a web page: {data[:40]!r}", fix="fetch the image again")
    if data.startswith(b"\xff\xd8") and EOI not in data[-64:] and data.rfind(EOI) <= data.rfind(SOS):
        raise Unusable("truncated", f"{name} is a JPEG without an end; {len(data):,} bytes are left of it")


def _unusable(err: Exception, name: str) -> Unusable:
    if isinstance(err, Unusable):
        return err
    message = str(err) or type(err).__name__
    return Unusable("truncated" if any(word in message for word in EARLY) else "broken", f"{name}: {message}")
