"""Pictures named on the command line."""

from pathlib import Path
from typing import TYPE_CHECKING

from mmalign.errors import DataError
from mmalign.io.pictures import rgb

if TYPE_CHECKING:
    from PIL.Image import Image


def open_rgb(path: Path) -> "Image":
    """The picture in a file, RGB and upright as it will be seen; a DataError that names the file."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as source:
            return rgb(ImageOps.exif_transpose(source))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
        reason = getattr(err, "strerror", None) or str(err)
        what = f"cannot open the image {path}: {reason}"
        raise DataError(what, at=str(path), fix="a picture: PNG, JPEG, ...") from err
