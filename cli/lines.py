"""The one door to the terminal for plain lines: control characters in them are written out, see mmalign.io.visible."""

import codecs
import io
import shutil
import sys
from textwrap import wrap
from typing import IO

from mmalign.io.visible import escaped, visible


def escape() -> None:
    """From now on what stdout and stderr cannot encode is written as \\u00e9: a C locale, PYTHONIOENCODING=ascii."""
    codecs.register_error("mmalign.escaped", escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="mmalign.escaped")


def say(text: str, file: IO[str] | None = None, end: str = "\n") -> None:
    """Print on stdout or on another stream, at once where it is stderr."""
    print(visible(text), file=file, end=end, flush=file is sys.stderr)


def complain(text: str) -> None:
    """Print on stderr."""
    say(text, sys.stderr)


def columns() -> int | None:
    """Of the terminal that stdout is; None in a file or a pipe, where no line is folded."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def folded(text: str, indent: int, least: int = 24) -> list[str]:
    """A text in lines that fit behind an indent, folded between words alone: names are never broken."""
    wide = columns()
    if wide is None or len(text) <= wide - indent:
        return [text] if text else []
    return wrap(text, max(wide - indent, least), break_long_words=False, break_on_hyphens=False)
