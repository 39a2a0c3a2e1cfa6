"""Explorers to try: words at random, of any grid; pictures of noise, or photographs that scikit-image ships."""

import importlib.util
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from mmalign.explore import Explorer, Pane, Picture
from mmalign.io.pictures import base64_png

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "ihc.png", "rocket.jpg")
WORDS = [
    f"{a}{b}" for a in ("cat", "spoon", "window", "Rhododendron", "sky", "of", "日本") for b in ("", "s", "-like", " x")
]


def ranked(tokens: int, keep: int = 5, seed: int = 0, words: list[str] = WORDS) -> list[list[tuple[str, float]]]:
    random = Random(seed)
    cosines = [sorted((random.uniform(-0.1, 0.4) for _ in range(keep)), reverse=True) for _ in range(tokens)]
    return [list(zip(random.sample(words, keep), own, strict=True)) for own in cosines]


def noise(side: int = 336, seed: int = 0) -> Image.Image:
    """What PNG cannot make smaller."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def photographs(side: int = 336) -> list[Image.Image]:
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("no photographs: pip install --no-deps scikit-image")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    return [Image.open(folder / name).convert("RGB").resize((side, side)) for name in PHOTOGRAPHS]


def pane(image: Image.Image, grid: tuple[int, int] | None, name: str = "", layers: int = 3, **more: object) -> Pane:
    tokens = grid[0] * grid[1] if grid else 10
    words = {layer: ranked(tokens, seed=100 * layer + len(name)) for layer in range(layers)}
    return Pane(name, base64_png(image), grid, words, **more)


def one(grid: tuple[int, int] | None = (5, 3), **more: object) -> Explorer:
    return Explorer([Picture("p", [pane(noise(32), grid, **more)])])
