"""Texts in a file, one a line: what a lens is fitted on where the user has some."""

from mmalign.errors import DataError
from mmalign.io import files

MOST = 1 << 20  # bytes read of a file: many times what a lens is fitted on
FIX = "a file of UTF-8 text, one text a line"


def read_texts(spec: str) -> list[str]:
    """The texts of a file that are not blank, of its first MOST bytes.

    spec: a path, a `pkg:` or `data:` path or an fsspec URL. Raises DataError for what is no text.
    """
    try:
        with files.open_(spec) as source:
            raw = source.read(MOST)
    except (OSError, ValueError) as err:
        raise DataError(f"cannot read the texts {spec!r}: {err}", at=spec, fix=FIX) from err
    if b"\0" in raw:
        raise DataError(f"{spec} is a binary file, not texts", at=spec, fix=FIX)
    if len(raw) == MOST and (end := max(raw.rfind(b"\n"), raw.rfind(b" "))) > 0:
        raw = raw[:end]
    try:
        lines = raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as err:
        raise DataError(f"{spec} is not UTF-8: {err.reason} at byte {err.start}", at=spec, fix=FIX) from err
    if not (texts := [line for line in lines if line.strip()]):
        raise DataError(f"{spec} has no text", at=spec, fix=FIX)
    return texts
