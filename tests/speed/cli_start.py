"""`mmalign list objectives` against importing the libraries that a command line and recipes need."""

import subprocess
import sys
from pathlib import Path

from . import Pairs, in_turn

TARGET = 1.5
TIMES = 20


def measure() -> Pairs:
    beside = Path(sys.executable).with_name("mmalign")
    ours = [str(beside), "list", "objectives"]
    reference = [sys.executable, "-c", "import typer, rich, omegaconf"]
    return in_turn(lambda: _run(ours), lambda: _run(reference), TIMES)


def _run(line: list[str]) -> None:
    subprocess.run(line, check=True, capture_output=True)
