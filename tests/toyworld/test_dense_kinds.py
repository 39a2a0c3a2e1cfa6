"""In the toy world values say more of a patch than the last layer, and surgery more than values; none is inverted."""

import pytest

from mmalign.vision.dense import DENSE
from tests.toyworld.dense_kinds import right

IMAGES = 40


@pytest.mark.parametrize("centred", [False, True])
def test_surgery_is_right_most_often_and_plain_least(centred):
    plain, value, surgery = (right(dense, 1, centred, IMAGES) for dense in DENSE)
    assert plain.all + 0.15 < value.all < surgery.all - 0.08
    assert plain.object + 0.05 < value.object < surgery.object
    assert surgery.all > 0.95


@pytest.mark.parametrize("dense", DENSE)
def test_no_kind_is_inverted(dense):
    assert right(dense, -1, False, IMAGES).all < 0.01
    assert right(dense, -1, True, IMAGES).all < 0.1
