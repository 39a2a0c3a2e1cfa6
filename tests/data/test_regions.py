"""What a patch shows by the boxes around it: rules, against loops, and turned with the picture."""

import math

import numpy as np
import pytest
from PIL import Image, ImageOps

from mmalign.data.regions import Regions, read_aliases, said_as, turned, with_aliases
from mmalign.errors import DataError
from mmalign.vision import Frame

GRID = (5, 3)  # patches of 20 x 16 of a picture of 60 x 80
SIZE = (60, 80)


def regions(*boxes, loose=()):
    """Of one picture, from (names, x0, y0, x1, y1)."""
    names = [tuple(names.split("/")) if names else () for names, *_ in boxes]
    box_M4 = np.array([edges for _, *edges in boxes], float).reshape(-1, 4)
    loose_M = np.isin(np.arange(len(boxes)), list(loose))
    return Regions.grouped(np.zeros(len(boxes), int), 1, box_M4, np.arange(len(boxes)), loose_M, names)


def shows(boxes, frame=None, orientation=1):
    truth = boxes.truth(0, SIZE, orientation, frame or Frame("squash", SIZE, GRID))
    return list(zip(truth.words, truth.object, strict=True))


BACK, PARTLY = ((), False), ((), None)


def test_the_smallest_box_that_covers_half():
    dog, rug = ("dog/puppy", 0, 0, 20, 16), ("rug", 0, 0, 60, 24)
    seen = shows(regions(rug, dog))
    assert seen[:3] == [(("dog", "puppy"), True), (("rug",), True), (("rug",), True)]
    assert seen[3:6] == [(("rug",), True)] * 3  # exactly half of it
    assert seen[6:] == [BACK] * 9
    assert shows(regions(dog, rug)) == seen


def test_less_than_half_is_neither():
    seen = shows(regions(("dog", 0, 0, 20, 7.9), ("cat", 25, 20, 28, 22)))
    assert seen[0] == PARTLY
    assert seen[4] == PARTLY
    assert seen.count(BACK) == 13


def test_edges_that_meet_do_not_touch():
    """A third of 60 pixels is no round number of the picture's width."""
    assert shows(regions(("dog", 20, 16, 40, 32))) == [BACK] * 4 + [(("dog",), True)] + [BACK] * 10


def test_crowds_and_things_without_a_name():
    crowd, table = ("person", 0, 0, 20, 16), ("table", 0, 0, 60, 32)
    seen = shows(regions(crowd, table, loose=[0]))
    assert seen[0] == PARTLY
    assert seen[1] == (("table",), True)
    assert shows(regions(("", 0, 0, 20, 16), table))[0] == PARTLY
    assert shows(regions(crowd, ("hat", 0, 0, 20, 10), loose=[0]))[0] == (("hat",), True)
    assert shows(regions()) == [BACK] * 15


def test_padding_and_what_is_cut_away():
    """A picture of 4 : 3 in a square of 4 x 4 patches: the upper and lower rows are half bars."""
    frame = Frame("pad", (80, 60), (4, 4), (0, -1 / 6, 1, 7 / 6))
    boxes = regions(("sky", 0, 0, 80, 10), ("dog", 20, 10, 40, 30))
    truth = boxes.truth(0, (80, 60), 1, frame)
    assert truth.words[:8] == [("sky",)] * 4 + [(), ("dog",), (), ()]
    assert truth.object[:8] == [True] * 4 + [False, True, False, False]
    low = regions(("sky", 0, 0, 80, 6)).truth(
        0, (80, 60), 1, frame
    )  # over most of what the patches show of the picture
    assert low.words[:4] == [("sky",)] * 4
    narrow = Frame("pad", (80, 40), (4, 4), (0, -1 / 2, 1, 3 / 2))  # whole rows of it are bars
    truth = boxes.truth(0, (80, 40), 1, narrow)
    assert truth.object[:4] == truth.object[-4:] == [None] * 4
    assert truth.words[:4] == [()] * 4
    cropped = Frame("crop", (80, 60), (3, 3), (1 / 8, 0, 7 / 8, 1))
    truth = boxes.truth(0, (80, 60), 1, cropped)
    assert truth.words[:3] == [("sky",)] * 3
    assert truth.words[3] == ()


def slow_truth(boxes, names, frame):
    """The rule, patch by patch and box by box. boxes: in 0..1."""
    seen = frame.seen()
    for number, (left, top, right, bottom) in enumerate(frame.patch_boxes()):
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, 1), min(bottom, 1)
        best, touched = None, False
        for (x0, y0, x1, y1), name in zip(boxes, names, strict=True):
            width, height = min(right, x1) - max(left, x0), min(bottom, y1) - max(top, y0)
            touched |= width > 0 and height > 0
            if width > 0 and height > 0 and width * height >= 0.5 * (right - left) * (bottom - top):
                area = (x1 - x0) * (y1 - y0)
                best = min(best or (math.inf, ""), (area, name))
        yield ((), None) if not seen[number] else ((best[1],), True) if best else ((), None if touched else False)


@pytest.mark.parametrize("frame", [
    Frame("squash", SIZE, (7, 2)), Frame("pad", SIZE, (6, 6), (-1 / 6, 0, 7 / 6, 1)),
    Frame("crop", SIZE, (5, 5), (0, 1 / 8, 1, 7 / 8)),
])  # fmt: skip
def test_against_a_loop(frame):
    random = np.random.default_rng(0)
    for _ in range(20):
        corner_M2 = random.random((9, 2)) * 0.8
        edge_M4 = np.concatenate([corner_M2, (corner_M2 + random.random((9, 2)) * 0.5).clip(0, 1)], 1)
        names = [f"thing {n}" for n in range(9)]
        boxes = regions(*[(name, *(edges * [*SIZE, *SIZE])) for name, edges in zip(names, edge_M4, strict=True)])
        assert shows(boxes, frame) == list(slow_truth(edge_M4.tolist(), names, frame))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_is_turned_as_its_picture_is(orientation):
    pixels = np.zeros((30, 50), np.uint8)
    pixels[5:10, 10:30] = 255
    stored, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = orientation
    stored.info["exif"] = exif.tobytes()
    upright = np.asarray(ImageOps.exif_transpose(stored))
    rows, columns = np.nonzero(upright)
    ((x0, y0, x1, y1),) = turned(np.array([[10 / 50, 5 / 30, 30 / 50, 10 / 30]]), orientation)
    height, width = upright.shape
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert edges == pytest.approx([x0 * width, y0 * height, x1 * width, y1 * height])


def test_aliases(tmp_path):
    (tmp_path / "a.txt").write_text("# groups\nperson, man,People\nman, guy\ntraffic light,stoplight\n")
    alias = read_aliases(str(tmp_path / "a.txt"))
    assert with_aliases(["Person"], alias) == ("person", "man", "people")
    assert with_aliases(["man"], alias) == ("man", "person", "people", "guy")
    assert with_aliases(["traffic_light", "lamp", " "], alias) == ("traffic light", "lamp", "stoplight")
    assert with_aliases(["sports  Ball\n"], {}) == ("sports ball",) == (said_as("Sports_ball"),)
    with pytest.raises(DataError, match="cannot read the word list"):
        read_aliases(str(tmp_path / "none.txt"))
