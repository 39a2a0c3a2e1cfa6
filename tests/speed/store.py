"""Reading the labels of images in random order from a store, against a bare pread of the same bytes."""

import os
import random
import tempfile
from pathlib import Path

import numpy as np

from mmalign.labels import store
from mmalign.labels.store import Header, Store
from mmalign.vision.picture import placed

from . import Pairs, in_turn
from ._work import clock

TARGET = 2.0
IMAGES, SHARD, READS = 2048, 512, 4096
GRID, KEEP = (24, 24), 10
TIMES = 9


def measure() -> Pairs:
    words, g = [f"word {n}" for n in range(41_242)], np.random.default_rng(0)
    header = Header("benchmark", store.words_hash(words), GRID, KEEP, {}, "", "pad", size=len(words))
    keys = [f"{n // 1000:05d}/{n:09d}.jpg" for n in range(IMAGES)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(IMAGES // SHARD):
            rows = [_row(header, g) for _ in range(SHARD)]
            store.write_shard(folder, number, header, rows, keys[number * SHARD : (number + 1) * SHARD], [])
        store.finish(folder, header, words, IMAGES // SHARD)
        read = Store(folder)
        files = [os.open(folder / f"shard-{number:05d}.bin", os.O_RDONLY) for number in range(IMAGES // SHARD)]
        order = random.Random(0).choices(range(IMAGES), k=READS)

        def ours() -> None:
            for number in order:
                words_PK, scores_PK, _ = read[keys[number]]
                words_PK.copy(), scores_PK.copy()  # so that the bytes are read, as pread reads them

        def bare() -> None:
            for number in order:
                os.pread(files[number // SHARD], header.stride, number % SHARD * header.stride)

        found = in_turn(ours, bare, TIMES, clock)
        for file in files:
            os.close(file)
    return found


def _row(header: Header, g: np.random.Generator) -> bytes:
    shape = (GRID[0] * GRID[1], KEEP)
    frame = placed("pad", (int(g.integers(300, 700)), 480), GRID, 336)
    return store.pack(header, g.integers(0, header.size, shape), g.random(shape), frame)
