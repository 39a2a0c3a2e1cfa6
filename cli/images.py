"""Pictures named on the command line: files, and URLs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mmalign.data import web
from mmalign.errors import DataError
from mmalign.io import files, pictures, whole
from mmalign.io.limits import IMAGE_BYTES

if TYPE_CHECKING:
    from PIL.Image import Image

FIX = "a picture: PNG, JPEG, ..."


def open_rgb(place: Path | str) -> "Image":
    """The picture in a file or behind a URL, RGB and upright as it will be seen; a DataError that names the place.

    A URL is fetched as it stands: who typed it allows its host, and no other that it sends on to.
    """
    from PIL import ImageOps

    spec = str(place)
    try:
        image = pictures.opened(_read(spec), os.path.basename(spec))
        pictures.load(image, os.path.basename(spec))
        return pictures.rgb(ImageOps.exif_transpose(image))
    except DataError as err:
        raise DataError(f"cannot open the image {spec}: {err.what}", at=spec, fix=err.fix or FIX) from err
    except Exception as err:  # Pillow's decoders raise some ten kinds of errors on damaged files
        reason = getattr(err, "strerror", None) or str(err)
        raise DataError(f"cannot open the image {spec}: {reason}", at=spec, fix=FIX) from err


def _read(spec: str) -> bytes:
    if spec == "-":
        raise DataError("pictures are not read from standard input", fix="the name of a file, or a URL")
    if files.is_url(spec):
        return web.fetch(spec, [spec]) if spec.startswith(("http://", "https://")) else whole.read(spec, IMAGE_BYTES)
    if Path(spec).is_dir():
        raise DataError("it is a folder", fix=f"its pictures, one by one or as a pattern of the shell: {spec}/*.png")
    return whole.read(spec, IMAGE_BYTES)
