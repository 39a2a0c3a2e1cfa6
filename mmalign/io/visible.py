"""Text as it may be shown: what would move the cursor, colour the terminal or turn the reading order is written out."""

import re

# C0 but tab and line feed, DEL, C1; marks that turn the reading order; line ends that terminals take for none; halves
# of a surrogate pair, which cannot be printed; letters nobody sees (tags, and the width-less ones that split words)
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """A text with its control characters as JSON writes them, \\u001b; JSON stays the same JSON. Tab and \\n stay."""
    return _HIDDEN.sub(_written, text)


def one_line(text: str) -> str:
    """As `visible`, for what stands in one line: a name, a path, a cell."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def escaped(err: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: what a stream's encoding lacks is written as JSON writes it, \\u00e9; JSON stays the
    same JSON."""
    if not isinstance(err, UnicodeEncodeError):
        raise err
    units = err.object[err.start : err.end].encode("utf-16-be", "surrogatepass")
    return _units(units), err.end


def _written(match: re.Match[str]) -> str:
    return _units(match[0].encode("utf-16-be", "surrogatepass"))


def _units(units: bytes) -> str:
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
