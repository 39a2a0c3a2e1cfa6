"""HTML pages of ours: whatever stands in them is text, never a tag, a style or a control character."""

import base64
import binascii
import struct
from importlib.resources import files
from typing import Any

from mmalign.io.visible import visible

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def page(package: str, name: str, **values: Any) -> str:
    """A page from a template in a package of ours, with the values in it."""
    import jinja2

    text = files(package).joinpath(name).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, finalize=_text
    )
    return environment.from_string(text).render(**values)


def _text(value: Any) -> Any:
    return visible(value) if type(value) is str else value  # not jinja2's Markup, which is a page of ours already


def png(value: Any) -> str:
    """The base64 of a PNG file, as it may stand in a page; ValueError for anything else."""
    try:
        data = base64.b64decode(value, validate=True)
    except (TypeError, binascii.Error, ValueError) as err:
        raise ValueError(f"`png` is no base64: {err}") from err
    begins = data.startswith(SIGNATURE) and data[12:16] == b"IHDR" and len(data) >= 24
    if not begins or not all(struct.unpack(">II", data[16:24])):  # width and height
        raise ValueError("`png` is no PNG file")
    return base64.b64encode(data).decode()


def grid(value: Any, tokens: int) -> tuple[int, int]:
    """(rows, columns) of a picture's tokens; None: they are no patches and stand in one row. ValueError otherwise."""
    if value is None:
        return 1, tokens
    if not (isinstance(value, (list, tuple)) and len(value) == 2 and all(type(side) is int for side in value)):
        raise ValueError(f"`grid` is {value!r}, not rows and columns")
    rows, columns = value
    if rows < 1 or columns < 1 or rows * columns != tokens:
        raise ValueError(f"`grid` is {rows} x {columns}, and there are {tokens} tokens")
    return rows, columns
