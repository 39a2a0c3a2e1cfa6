"""In the toy world values say more of a patch than the last layer, and surgery more than values; none is inverted."""

import re
from dataclasses import astuple
from pathlib import Path

import pytest

from mmalign.vision.dense import DENSE
from tests.toyworld.dense_kinds import right

ROOT = Path(__file__).parents[2]
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


def test_the_table_of_the_readme():
    rows = re.findall(r"^\| (plain|value|surgery) \|(.*)\|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert [dense for dense, _ in rows] == list(DENSE)
    for dense, cells in rows:
        told = [int(share) for share in re.findall(r"(\d+) %", cells)]
        bare, centred = (right(dense, 1, is_centred) for is_centred in (False, True))
        measured = [
            share for pair in zip(astuple(bare), astuple(centred), strict=True) for share in pair
        ]  # object, background, all
        assert told == pytest.approx([100 * share for share in measured], abs=0.51)
