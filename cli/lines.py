"""The one door to the terminal for plain lines: control characters in them are written out, see mmalign.io.visible."""

import codecs
import io
import sys
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
