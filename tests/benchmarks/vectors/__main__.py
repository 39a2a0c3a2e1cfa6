"""Packs a folder of vectors: python -m tests.benchmarks.vectors FOLDER."""

import sys
from pathlib import Path

from . import PACKED, pack

pack(Path(sys.argv[1]), PACKED)
