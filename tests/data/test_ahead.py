"""How much of a check is left, beside what was left indeed, of data whose images repeat in several ways."""

import random

import pytest

from mmalign.data.ahead import ROWS, Ahead

RANDOM = random.Random(0)
SEVERAL = [n for n in range(4000) for _ in range(RANDOM.choice([1, 1, 1, 2, 3, 4]))]
DATA = {  # the image of each record; None: of texts alone
    "each once": list(range(4000)),
    "several times, side by side": SEVERAL,
    "several times, in any order": RANDOM.sample(SEVERAL, len(SEVERAL)),
    "a few, very often": [RANDOM.randrange(2000) for _ in range(40_000)],
    "texts": [None] * 4000,
    "one image": [0] * 4000,
}


@pytest.mark.parametrize("name", DATA)
def test_what_is_left_is_foreseen(name):
    images = DATA[name]
    ahead, known, errors = Ahead(len(images)), set(), []
    whole = len(images) + ROWS * len(set(images) - {None})
    for rows, image in enumerate(images, 1):
        known |= {image} - {None}
        if rows % 200 == 0 or rows == len(images):
            done, total = ahead.work(rows, len(known))
            assert done == rows + ROWS * len(known)
            if whole / 3 < done < 2 * whole / 3:
                errors.append((total - done) / (whole - done) - 1)
    assert total == done == whole
    assert max(map(abs, errors)) < 0.15
