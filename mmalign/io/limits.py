"""How much a file of somebody else's may ask for: each limit with its unit, and the setting that raises it.

A limit is read when it is asked for, from the environment: MMALIGN_IMAGE_BYTES=1G, or from its default.
"""

import os
import re
from dataclasses import dataclass

from mmalign.errors import RunError

_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Limit:
    """name: of the setting, an environment variable. default: in `unit`."""

    name: str
    default: int
    unit: str

    @property
    def value(self) -> int:
        """What holds now; a RunError where the setting is no number."""
        text = os.environ.get(self.name, "").strip()
        if not text:
            return self.default
        number = re.fullmatch(r"([0-9]{1,18})([KMGT]?)", text.upper())
        if not number:
            example = self.short(self.default).replace(" ", "").removesuffix("iB")
            raise RunError(f"{self.name} is no number: {text!r}", at=self.name, fix=f"{self.name}={example}")
        return int(number[1]) * _FACTORS[number[2]]

    def short(self, amount: int) -> str:
        """An amount as a message shows it: 512 MiB, 178,956,970 pixels."""
        if self.unit != "bytes":
            return f"{amount:,} {self.unit}".strip()
        for letter in "TGMK":
            if amount >= _FACTORS[letter]:
                return f"{amount / _FACTORS[letter]:.4g} {letter}iB"
        return f"{amount:,} bytes"

    @property
    def said(self) -> str:
        """What holds now, in words."""
        return self.short(self.value)

    @property
    def fix(self) -> str:
        """What to try: the setting with a value twice as large, for those who trust the file."""
        twice = 2 * self.value
        letter = next((c for c in "TGMK" if self.unit == "bytes" and not twice % _FACTORS[c]), "")
        return f"{self.name}={twice // _FACTORS[letter]}{letter}, if it is right that it is so large"


IMAGE_BYTES = Limit("MMALIGN_IMAGE_BYTES", 1 << 28, "bytes")  # an image file, wherever it lies
IMAGE_PIXELS = Limit("MMALIGN_IMAGE_PIXELS", 178_956_970, "pixels")  # Pillow's own; 537 MB as RGB
ROW_BYTES = Limit("MMALIGN_ROW_BYTES", 1 << 28, "bytes")  # the JSON or text of one record or line
ROWS = Limit("MMALIGN_ROWS", 50_000_000, "rows")  # of one file: 16 bytes of memory and of the cache each
FILE_BYTES = Limit("MMALIGN_FILE_BYTES", 1 << 31, "bytes")  # a file that is read whole: questions, answers, word lists
SETTINGS_BYTES = Limit("MMALIGN_SETTINGS_BYTES", 1 << 26, "bytes")  # recipes, cards, chat templates
TABLE_BYTES = Limit("MMALIGN_TABLE_BYTES", 1 << 30, "bytes")  # a row group of a parquet file, unpacked
UNPACKED_BYTES = Limit("MMALIGN_UNPACKED_BYTES", 1 << 30, "bytes")  # a .gz, whatever its size; see UNPACKED_TIMES
UNPACKED_TIMES = 100  # a .gz larger than that may be so many times its own size: deflate ends at 1,030, JSON at some 20
