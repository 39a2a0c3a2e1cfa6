"""`data check` of 10,000 small images against as many processes, up to two, that do nothing but decode the files."""

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mmalign.data import check
from mmalign.data.conversations import Conversations
from mmalign.io import processor

from . import Pairs, in_turn

TARGET = 1.25  # 0.8 of the limit
IMAGES, DRAWN = 10_000, 100  # files; pictures drawn for them
SIZE = (224, 168)  # pixels
JOBS = min(2, processor.cores())
TIMES = 5
DECODE = """
import sys
from PIL import Image
for number in sys.argv[2:]:
    Image.open(f"{sys.argv[1]}/{number}.jpg").load()
"""


def measure() -> Pairs:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MMALIGN_CACHE"] = str(folder / "cache")
        rows = _written(folder / "images")
        ours = partial(check.check, partial(Conversations, str(rows), str(folder / "images")), JOBS)
        return in_turn(lambda: _sound(ours()), lambda: _bare(folder / "images"), TIMES)


def _written(folder: Path) -> Path:
    """Photograph-like JPEGs of about 12 kB; the rows that refer to them lie beside the folder."""
    folder.mkdir()
    drawn = [folder.parent / f"{n}.jpg" for n in range(DRAWN)]
    for number, place in enumerate(drawn):
        random = np.random.default_rng(number)
        shapes = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
        grain = random.normal(0, 8, (SIZE[1], SIZE[0], 1))
        Image.fromarray((np.asarray(shapes) + grain).clip(0, 255).astype(np.uint8)).save(place, quality=85)
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A picture."}]
    with open(folder.parent / "rows.jsonl", "w") as rows:
        for number in range(IMAGES):
            (folder / f"{number}.jpg").write_bytes(drawn[number % DRAWN].read_bytes())
            rows.write(json.dumps({"id": str(number), "image": f"{number}.jpg", "conversations": turns}) + "\n")
    return folder.parent / "rows.jsonl"


def _sound(result: check.CheckResult) -> None:
    assert (result.files, result.bad) == (IMAGES, [])


def _bare(folder: Path) -> None:
    lines = [[sys.executable, "-c", DECODE, str(folder), *map(str, range(n, IMAGES, JOBS))] for n in range(JOBS)]
    for process in [subprocess.Popen(line) for line in lines]:
        assert process.wait() == 0
