"""Pictures named on the command line."""

from pathlib import Path
from typing import TYPE_CHECKING

from mmalign.errors import DataError
from mmalign.io import pictures, whole
from mmalign.io.limits import IMAGE_BYTES

if TYPE_CHECKING:
    from PIL.Image import Image


def open_rgb(path: Path) -> "Image":
    """The picture in a file, RGB and upright as it will be seen; a DataError that names the file."""
    from PIL import ImageOps

    try:
        image = pictures.opened(whole.read(str(path), IMAGE_BYTES), path.name)
        pictures.load(image, path.name)
        return pictures.rgb(ImageOps.exif_transpose(image))
    except DataError as err:
        what, fix = f"cannot open the image {path}: {err.what}", err.fix or "a picture: PNG, JPEG, ..."
        raise DataError(what, at=str(path), fix=fix) from err
    except Exception as err:  # Pillow's decoders raise some ten kinds of errors on damaged files
        reason = getattr(err, "strerror", None) or str(err)
        what = f"cannot open the image {path}: {reason}"
        raise DataError(what, at=str(path), fix="a picture: PNG, JPEG, ...") from err
