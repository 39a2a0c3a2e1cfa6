"""Labels lie where a patch shows what they name: from another fit, grid and encoder, online and from a store."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.data import MARK, Data, Record, Turn
from mmalign.labels import LabelSource
from mmalign.labels.store import Store
from mmalign.pipeline import task
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.stages import label
from mmalign.vision import FITS
from mmalign.vision.hf import HFVision
from tests import parts
from tests.stages.test_train_labels import collated
from tests.vision.test_frame import cell, cells, palette

SIZES = ((640, 480), (1600, 400), (480, 640))
PATCH, SIDES = 4, {"clip": 24, "siglip": 27, "dinov2": 24}  # in pixels; patches of a side, as of CLIP-336, SigLIP-384
OF_FIT = {"crop": "clip", "pad": "clip", "squash": "siglip"}  # the models whose own way it is, or LLaVA's
MAKE = {"clip": parts.clip, "siglip": parts.siglip, "dinov2": parts.dinov2}

# ../shared/FRAME.md: picture, the model's fit, the labels', then the share of patches with a label and of right ones
TABLE = [
    ((640, 480), "squash", "pad", 1.00, 0.89),
    ((640, 480), "pad", "crop", 0.56, 1.00),
    ((640, 480), "crop", "pad", 1.00, 1.00),
    ((640, 480), "pad", "squash", 0.75, 1.00),
    ((1600, 400), "crop", "pad", 1.00, 1.00),
    ((1600, 400), "squash", "pad", 1.00, 0.85),
    ((480, 640), "squash", "crop", 0.78, 0.85),
]


class Coloured(HFVision):
    """Its dense features are the colours at the centre of each patch, 0 to 1, of the pixels it is given."""

    def __init__(self, checkpoint: str, fit: Any = None) -> None:
        super().__init__(checkpoint, fit=fit)
        self.joint = 3

    def both(self, pixels_B3SS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean_311, std_311 = (
            torch.tensor(values)[:, None, None] for values in (self.processor.image_mean, self.processor.image_std)
        )
        shown_B3SS = pixels_B3SS * std_311 + mean_311
        (rows, columns), at = self.grid, PATCH // 2
        cut_B3HW = shown_B3SS[..., at - 1 : rows * PATCH : PATCH, at - 1 : columns * PATCH : PATCH]
        return torch.zeros(len(pixels_B3SS), self.patches, self.dim), cut_B3HW.flatten(2).transpose(1, 2)


class Named(LabelSource):
    """Says which cell's colour is nearest to a patch's, by a word for each cell; gray bars are near to one, too."""

    def __init__(self, encoder: Coloured, keep: int, words: str) -> None:
        self.encoder, self.words, self.keep = encoder, Path(words).read_text().split(), keep

    def label(self, dense_NJ: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        far_NW = torch.cdist(dense_NJ.float() * 255, torch.from_numpy(palette()).float(), p=1)
        return far_NW.argmin(1, keepdim=True), torch.ones(len(dense_NJ), 1)

    def identity(self) -> str:
        return f"named by {self.encoder.identity()}"


class Cells(Data):
    """A picture of coloured cells of each size."""

    def __len__(self) -> int:
        return len(SIZES)

    def __getitem__(self, number: int) -> Record:
        turns = (Turn("user", f"{MARK}\nwhat is it ?"), Turn("assistant", "red"))
        return Record(f"picture-{number}", turns, (number,))

    def image(self, reference: int) -> Image.Image:
        return cells(*SIZES[reference])


RECIPE = """\
name: cells
seed: 3
registry: [./shelf]
model: {vision: model-KIND, adapter: linear, llm: toy-llama}
stages:
  label: {kind: label, source: {card: named, args: {encoder: eye}}, data: cells, keep: 1, fit: LABELS}
  align:
    kind: train
    fit: MODEL
    reads: {labels: label}
    data: cells
    trains: [adapter]
    objectives: {sea: 1.0}
    optim: {lr: 1e-3}
    batch: 1
    steps: 1
    max_length: 1024
    precision: fp32
    engine: {zero: 0, workers: 1}
"""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Cards of the encoders, the labels and the data, beside the recipe."""
    folder = tmp_path_factory.mktemp("cells")
    written = {"labels": {"named": ("Named", {"words": f"{folder}/words.txt"})}, "data": {"cells": ("Cells", {})}}
    eye = {"checkpoint": f"{folder}/clip"}
    written["vision"] = {"eye": ("Coloured", eye), **{f"eye-{fit}": ("Coloured", eye | {"fit": fit}) for fit in FITS}}
    for kind, make in MAKE.items():
        make(folder / kind, size=SIDES[kind] * PATCH, patch=PATCH)
    for family, named in written.items():
        (folder / "shelf" / family).mkdir(parents=True)
        for name, (cls, args) in named.items():
            text = f"summary: x\ntarget: {__name__}.{cls}\nargs: {args}\n"
            (folder / "shelf" / family / f"{name}.yaml").write_text(text)
    for kind in MAKE:
        text = f"summary: x\ntarget: mmalign.vision.hf.HFVision\nargs: {{checkpoint: {folder}/{kind}}}\n"
        (folder / "shelf" / "vision" / f"model-{kind}.yaml").write_text(text)
    words = (Path(label.__file__).parents[1] / "toyworld/words/full.txt").read_text().split()
    (folder / "words.txt").write_text("\n".join(words[: len(palette())]))
    return folder


def shown(folder, kind, model, labels, online):
    """The align stage's batch and, of each of its pictures, word_P, the number of each patch's word, or -1."""
    recipe = RECIPE.replace("KIND", kind).replace("MODEL", model).replace("LABELS", labels)
    (folder / "cells.yaml").write_text(recipe)
    words = [
        "stages.label=~", "stages.align.reads=~",
        f"stages.align.labels={{source: {{card: named, args: {{encoder: eye-{labels}}}}}, keep: 1}}",
    ]  # fmt: skip
    *before, align = graph.plan(compose.load(folder / "cells.yaml", words if online else []), folder / "runs")
    for node in before:
        given = task.load(node.folder, task.save(node))
        task.finish(given, label.run(given), 0.0, 1)
        assert Store(node.folder / "labels").header.fit == labels
    supervised, collate = collated(task.load(align.folder, task.save(align)))
    batch = collate.batch(range(len(SIZES)), seed=0)
    assert (batch.label_pixels_B3SS is not None) == online
    step = type("Step", (), {})()
    with torch.no_grad():
        supervised._label(step, batch, None)
    words_NK, scores_NK = step.labels(torch.arange(len(SIZES) * supervised.vlm.tokens))
    word_N = torch.where(scores_NK[:, 0] > 0, words_NK[:, 0], -1)
    return batch, word_N.view(len(SIZES), -1).tolist()


ROWS = [(kind, *row) for row in TABLE for kind in (OF_FIT[row[1]], "dinov2")]


@pytest.fixture(scope="module")
def words_of(shelf, tmp_path_factory):
    """words_of(kind, model, labels, online): what `shown` gives, worked out once."""
    known: dict[tuple[Any, ...], Any] = {}

    def get(*key):
        if key not in known:
            known[key] = shown(shelf, *key)
        return known[key]

    return get


@pytest.mark.parametrize("online", [True, False], ids=["online", "store"])
@pytest.mark.parametrize(("kind", "size", "model", "labels", "labelled", "right"), ROWS)
def test_the_table_of_the_frames(words_of, kind, size, model, labels, labelled, right, online):
    """The same shares have a label; as many of them or more are right, by how the grids' borders meet the cells'."""
    batch, words = words_of(kind, model, labels, online)
    number = SIZES.index(size)
    frame, word_P = batch.frames[number], words[number]
    assert (frame.fit, frame.size, frame.grid) == (model, size, (SIDES[kind],) * 2)
    centres = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in frame.patch_boxes()]
    told = [(word, cell(x, y)) for word, (x, y) in zip(word_P, centres, strict=True) if word >= 0]
    assert len(told) / len(word_P) == pytest.approx(labelled, abs=0.035 if kind == "dinov2" else 0.006)
    assert np.mean([word == at for word, at in told]) >= right - 0.006


@pytest.mark.parametrize(("model", "labels"), sorted({row[1:3] for row in TABLE}))
def test_online_and_stored_labels_are_equal(words_of, model, labels):
    assert words_of("dinov2", model, labels, True)[1] == words_of("dinov2", model, labels, False)[1]
