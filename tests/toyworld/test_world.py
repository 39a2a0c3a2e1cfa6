"""The toy world: images, texts and truth are what their numbers say, and true of the scene."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest

from mmalign.errors import CheckError, DataError
from mmalign.toyworld import render
from mmalign.toyworld.data import AltTexts, Captions, Scenes, Texts, ToyData, VisualChat
from mmalign.toyworld.world import PARTNERS, PLACES, SHAPES, SIDE, Scene, scene

SETS = [AltTexts(50), Captions(50), VisualChat(50), Texts(50)]


def scenes(count: int, split: str = "train") -> list[Scene]:
    return [scene(0, split, number) for number in range(count)]


def test_a_scene_belongs_to_its_seed_split_and_number():
    assert scene(0, "train", 7) == scene(0, "train", 7)
    assert len({scene(*key) for key in [(0, "train", 7), (1, "train", 7), (0, "eval", 7), (0, "train", 8)]}) == 4


def test_no_scene_of_one_split_is_in_the_other():
    assert not set(scenes(2000)) & set(scenes(2000, "eval"))


@pytest.mark.parametrize("data", SETS, ids=lambda data: data.kind)
def test_records_do_not_depend_on_order_or_thread(data: ToyData):
    numbers = list(range(50))
    before = [data[number] for number in numbers]
    with ThreadPoolExecutor(4) as pool:
        after = list(pool.map(data.__getitem__, reversed(numbers)))
    assert before == after[::-1]
    assert len({record.id for record in before}) == 50


def test_images_do_not_depend_on_thread():
    data = AltTexts(20)
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(data.image, range(20)))
    assert all(image.tobytes() == data.image(number).tobytes() for number, image in enumerate(images))
    assert all(image.mode == "RGB" and image.size == (SIDE, SIDE) for image in images)


def test_the_same_number_is_the_same_image_in_every_set():
    assert (
        AltTexts(9).image(5).tobytes() == VisualChat(9).image(5).tobytes() != VisualChat(9, "eval").image(5).tobytes()
    )


def test_one_to_three_things_in_quadrants_of_their_own():
    many = scenes(600)
    assert set(Counter(len(scene_.things) for scene_ in many)) == {1, 2, 3}
    for scene_ in many:
        assert len({thing.place for thing in scene_.things}) == len(scene_.things)
        for thing in scene_.things:
            column, row = int(thing.x > SIDE / 2), int(thing.y > SIDE / 2)
            assert thing.place == PLACES[2 * row + column]


def test_things_lie_inside_their_quadrants():
    for scene_ in scenes(200):
        owner_SS = render.owners(scene_)
        for number, thing in enumerate(scene_.things):
            rows, columns = np.nonzero(owner_SS == number)
            assert len({(row // 36, column // 36) for row, column in zip(rows, columns, strict=True)}) == 1, thing


def test_frequent_shapes_are_frequent():
    counts = Counter(scene_.things[0].shape for scene_ in scenes(4000))
    assert list(SHAPES) == [shape for shape, _ in counts.most_common()]
    for shape, share in SHAPES.items():
        assert counts[shape] / 4000 == pytest.approx(share, abs=0.03)


def test_partners_come_together():
    later = [(scene_.things[0].shape, thing.shape) for scene_ in scenes(3000) for thing in scene_.things[1:]]
    for shape in SHAPES:
        others = [other for first, other in later if first == shape]
        by_chance = SHAPES[PARTNERS[shape]]
        assert others.count(PARTNERS[shape]) / len(others) == pytest.approx(0.4 + 0.6 * by_chance, abs=0.08)


@pytest.mark.parametrize("grid", [(6, 6), (5, 3), (7, 11), (1, 1), (27, 27), (100, 2)], ids=str)
def test_truth_from_the_area_of_every_pixel(grid: tuple[int, int]):
    rows, columns = grid
    for scene_ in scenes(4):
        owner_SS, truth = render.owners(scene_), render.truth(scene_, grid)
        assert len(truth.words) == len(truth.object) == rows * columns
        for patch in range(rows * columns):
            share = slow_shares(owner_SS, len(scene_.things), divmod(patch, columns), grid)
            best = scene_.things[share.index(max(share))]
            if max(share) >= Fraction(1, 4):
                assert (truth.words[patch], truth.object[patch]) == ((best.shape, best.color, best.size), True)
            elif max(share) < Fraction(6, 100):
                assert (truth.words[patch], truth.object[patch]) == (("background", scene_.background), False)
            else:
                assert (truth.words[patch], truth.object[patch]) == ((), None)


def slow_shares(owner_SS: np.ndarray, things: int, patch: tuple[int, int], grid: tuple[int, int]) -> list[Fraction]:
    """How much of a patch each thing covers, summed over the pixels that the patch's rectangle touches."""
    (top, bottom), (left, right) = (
        (Fraction(patch[n] * SIDE, grid[n]), Fraction((patch[n] + 1) * SIDE, grid[n])) for n in (0, 1)
    )
    share = [Fraction(0)] * things
    for row in range(floor(top), ceil(bottom)):
        for column in range(floor(left), ceil(right)):
            height = min(bottom, row + 1) - max(top, row)
            width = min(right, column + 1) - max(left, column)
            if owner_SS[row, column] >= 0:
                share[owner_SS[row, column]] += height * width
    return [part / ((bottom - top) * (right - left)) for part in share]


def test_most_patches_are_background():
    kinds = Counter(kind for scene_ in scenes(300) for kind in render.truth(scene_, (6, 6)).object)
    assert kinds[True] / kinds.total() == pytest.approx(0.25, abs=0.03)
    assert kinds[False] / kinds.total() == pytest.approx(0.65, abs=0.03)


def test_every_pixel_of_a_thing_has_its_color():
    scene_ = scene(0, "train", 3)
    still = render.pixels(scene_, bytes([render.NOISE // 2]) * SIDE * SIDE * 3)  # no noise
    owner_SS = render.owners(scene_)
    assert {tuple(pixel) for pixel in still[owner_SS < 0].tolist()} == {render.BACKGROUNDS[scene_.background]}
    for number, thing in enumerate(scene_.things):
        bright = render.COLORS[thing.color]
        dark = tuple(int(level * render.DARK) for level in bright)
        assert {tuple(pixel) for pixel in still[owner_SS == number].tolist()} <= {bright, dark}


def test_a_misspelt_split_is_refused():
    with pytest.raises(CheckError, match="no split 'evl'\n  try  did you mean 'eval'"):
        Scenes("evl", 0)


def test_too_many_questions_are_refused():
    with pytest.raises(CheckError, match="questions must be 1 to 12, got 13"):
        VisualChat(9, questions=13)
    assert len(VisualChat(9, questions=12)[0].turns) == 24


def test_a_negative_size_is_refused():
    with pytest.raises(CheckError, match="size cannot be negative, got -1"):
        VisualChat(-1)


def test_a_record_that_does_not_exist():
    with pytest.raises(DataError, match="no record 9\n  try  0 to 8"):
        Captions(9)[9]
