"""Pictures as io/pictures.py reads them; what it refuses is Unusable here, as what is wrong with rows is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mmalign.data.reasons import Unusable
from mmalign.io import pictures
from mmalign.io.pictures import PictureError

if TYPE_CHECKING:
    from PIL.Image import Image


def picture(data: bytes, name: str) -> "Image":
    """8-bit RGB, see `pictures.picture`; Unusable with the reason."""
    with unusable():
        return pictures.picture(data, name)


def open_image(data: bytes, name: str) -> "Image":
    """The image with its format, mode and size known, and its pixels not yet decoded; Unusable with the reason."""
    with unusable():
        return pictures.opened(data, name)


def load_rgb(image: "Image", name: str) -> "Image":
    """The pixels of an opened image, in 8-bit RGB; Unusable with the reason."""
    with unusable():
        return pictures.load_rgb(image, name)


@contextmanager
def unusable() -> Iterator[None]:
    """Around code that reads pictures: a PictureError becomes Unusable, with its reason."""
    try:
        yield
    except PictureError as err:
        raise Unusable(err.reason, err.what, fix=err.fix) from err
