"""Text files that a user names: UTF-8, whole."""

from mmalign.errors import DataError
from mmalign.io import whole

MOST = 1 << 20  # characters of a file's lines: many times what a lens is fitted on


def read_text(spec: str) -> str:
    """The text of a file. spec: a path, a `pkg:` or `data:` path or an fsspec URL. DataError for what is no text."""
    try:
        raw = whole.read(spec)
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or err
        fix = "a path, a URL or pkg:package/file"
        raise DataError(f"cannot read the text {spec!r}: {reason}", at=spec, fix=fix) from err
    if b"\0" in raw:
        raise DataError("the text is a binary file", at=spec, fix="text in UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise DataError(
            f"the text is not UTF-8: {err.reason} at byte {err.start}", at=spec, fix="text in UTF-8"
        ) from err
    if not text.strip():
        raise DataError("the text is empty", at=spec, fix="some paragraphs")
    return text


def read_texts(spec: str) -> list[str]:
    """The lines of a file, the blank ones left out, until there are MOST characters: see `read_text`."""
    texts, size = [], 0
    for line in read_text(spec).splitlines():
        if size >= MOST:
            break
        texts += [line] if line.strip() else []
        size += len(line)
    return texts
