"""A visual token shows the part of the picture that its layout says: told by which tokens a coloured cell changes.

The towers have no layers, so that nothing is mixed before the language model.
"""

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.integrations import declared, layouts
from tests.integrations import families

shallow = cache(lambda family: families.make(family, layers=0))
CELLS = (6, 5)  # columns, rows
SIZES = [(120, 120), (160, 120), (100, 280), (133, 97)]
TILED = ("llava_onevision", "idefics3", "smolvlm", "internvl")


def tokens(model, processor, images):
    """tokens_ND of images, each alone in its row."""
    parts = declared.parts(model, processor)
    inputs = processor(text=[parts.mark] * len(images), images=[[i] for i in images], return_tensors="pt", padding=True)
    inputs.pop("labels", None)
    told = declared.counts(parts, inputs)
    with declared.entering(parts) as entry, torch.no_grad():
        model(**inputs)
    return torch.split(entry.tokens_ND, told)


def grey(width, height):
    return np.full((height, width, 3), 100, dtype=np.uint8)


def with_cell(width, height, column, row):
    """A grey picture with one cell of 6 x 5 in red, and where the cell is."""
    picture = grey(width, height)
    x0, x1 = (round(width * n / CELLS[0]) for n in (column, column + 1))
    y0, y1 = (round(height * n / CELLS[1]) for n in (row, row + 1))
    picture[y0:y1, x0:x1] = (250, 20, 20)
    return Image.fromarray(picture), (x0 / width, y0 / height, x1 / width, y1 / height)


def inside(box, cell, slack=(0.0, 0.0)):
    """Whether a box, made smaller, lies in a cell."""
    return all(cell[n] <= box[n] - slack[n] + 1e-9 and box[n + 2] + slack[n] <= cell[n + 2] + 1e-9 for n in (0, 1))


def apart(box, cell, slack):
    return any(box[n + 2] + slack[n] < cell[n] or box[n] - slack[n] > cell[n + 2] for n in (0, 1))


CASES = [*product(families.FAMILIES, SIZES), *product(("llava_next", "qwen3_vl"), SIZES[1:3])]


@pytest.mark.parametrize(("family", "size"), CASES)
def test_a_cell_changes_the_tokens_that_lie_in_it(family, size):
    model, processor = shallow(family)
    parts = declared.parts(model, processor)
    pictures = [with_cell(*size, *cell) for cell in product(range(CELLS[0]), range(CELLS[1]))]
    plain_QD, *every = tokens(model, processor, [Image.fromarray(grey(*size)), *(picture for picture, _ in pictures)])
    views = layouts.views(parts, size, len(plain_QD))
    assert views
    shown = set()
    for changed_QD, (_, cell) in zip(every, pictures, strict=True):
        changed_Q = (changed_QD - plain_QD).abs().amax(1) > 1e-4
        for frame, token_P in views:
            boxes = frame.patch_boxes()
            assert len(boxes) == len(token_P)
            wide, high = (boxes[0][2] - boxes[0][0], boxes[0][3] - boxes[0][1])
            for token, box in zip(token_P, boxes, strict=True):
                slack = (wide * 0.6, high * 0.6)  # what resizing smears, 2 of 4 pixels
                middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
                if inside((*middle, *middle), cell):
                    assert changed_Q[token], (frame.grid, box, cell)
                    shown.add(token)
                elif apart(box, cell, slack):
                    assert not changed_Q[token], (frame.grid, box, cell)
    patches = {token for frame, token_P in views for token, seen in zip(token_P, frame.visible(), strict=True) if seen}
    assert len(shown) > 0.8 * len(patches)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_views_of_a_picture(family):
    model, processor = shallow(family)
    parts = declared.parts(model, processor)
    size = (160, 80)
    (all_QD,) = tokens(model, processor, [Image.fromarray(grey(*size))])
    views = layouts.views(parts, size, len(all_QD))
    assert len(views) == 1 + (family in TILED)
    told = {token for view in views for token in view.token_P}
    ends = views[1].frame.grid[0] if family == "llava_onevision" else 0
    assert len(told) == len(all_QD) - ends
    assert all(view.frame.size == size for view in views)
    assert layouts.views(parts, size, len(all_QD) + 5) is None
    assert {"llava": "crop", "qwen2_5_vl": "native"}.get(family, "squash") == views[0].frame.fit


def test_onevision_pads_a_picture_beside_another():
    model, processor = shallow("llava_onevision")
    parts = declared.parts(model, processor)
    size = (160, 80)
    red = grey(*size)
    red[40:, 120:] = (250, 20, 20)
    inputs = processor(
        text=[parts.mark * 2], images=[[Image.fromarray(grey(*size)), Image.fromarray(red)]], return_tensors="pt"
    )
    assert declared.counts(parts, inputs) == [17, 17]
    with declared.entering(parts) as entry, torch.no_grad():
        model(**inputs)
    (view,) = layouts.views(parts, size, 17)
    assert view.frame.seen() == [False] * 4 + [True] * 8 + [False] * 4
    changed_Q = (entry.tokens_ND[:17] - entry.tokens_ND[17:]).abs().amax(1)
    assert view.token_P[view.frame.patch_at(0.9, 0.75)] == int(changed_Q.argmax()) == 11


def test_onevision_with_fewer_tokens_than_patches():
    """Tiles of more than four squares are made coarser; a token then shows some of its neighbours."""
    model, processor = families.make("llava_onevision", layers=0)
    model.config.vision_aspect_ratio = processor.vision_aspect_ratio = "anyres_max_4"
    parts = declared.parts(model, processor)
    size = (150, 150)
    picture, cell = with_cell(*size, 1, 1)
    plain_QD, changed_QD = tokens(model, processor, [Image.fromarray(grey(*size)), picture])
    frame, token_P = layouts.views(parts, size, len(plain_QD))[1]
    assert frame.grid == (8, 8)
    changed = (changed_QD - plain_QD).abs().amax(1)[list(token_P)]
    x0, y0, x1, y1 = frame.patch_boxes()[int(changed.argmax())]
    assert inside(((x0 + x1) / 2, (y0 + y1) / 2) * 2, cell)


def test_tokens_of_a_resampler_have_no_layout(monkeypatch):
    model, processor = shallow("llava")
    parts = declared.parts(model, processor)
    assert layouts.views(parts, (50, 50), 16)
    monkeypatch.setattr(model.config, "perceiver_config", {}, raising=False)
    assert layouts.views(parts, (50, 50), 16) is None


def test_a_family_whose_layout_nobody_knows():
    """Pixtral's, with a token behind each line: it has no grid, and says so."""
    model, processor = shallow("mistral3")
    parts = declared.parts(model, processor)
    size = (160, 80)
    (all_QD,) = tokens(model, processor, [Image.fromarray(grey(*size))])
    assert layouts.views(parts, size, len(all_QD)) is None
    assert layouts.fixed(parts) is None
