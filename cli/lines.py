"""The one door to the terminal for plain lines: control characters in them are written out, see mmalign.io.visible."""

import sys
from typing import IO

from mmalign.io.visible import visible


def say(text: str, file: IO[str] | None = None, end: str = "\n") -> None:
    """Print on stdout or on another stream, at once where it is stderr."""
    print(visible(text), file=file, end=end, flush=file is sys.stderr)


def complain(text: str) -> None:
    """Print on stderr."""
    say(text, sys.stderr)
