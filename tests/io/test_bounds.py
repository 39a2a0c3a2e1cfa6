"""Bounds of arguments: told in the class's words; half-open ends, whole numbers, no booleans."""

import math

import pytest

from mmalign.errors import CardError
from mmalign.io import bounds

SHARE = {"share": {"least": 0, "below": 1, "words": "at least 0 and below 1", "example": 0.05}}


@pytest.mark.parametrize(
    ("bound", "inside", "outside"),
    [
        ({"least": 1, "whole": True}, [1, 2, 10**9], [0, -1, 1.0, 1.5, True, "1", [1], math.nan]),
        ({"above": 0}, [1e-9, 1], [0, -1, 0.0, math.nan, False]),
        ({"least": 0, "below": 1}, [0, 0.0, 0.999], [1, 1.0, -0.001, math.nan]),
        ({"most": 3}, [3, -9, 2.5], [3.001, 4]),
        ({"among": (4, 8)}, [4, 8], [3, 5, 16, True, "4"]),
    ],
)
def test_what_is_within(bound, inside, outside):
    assert all(bounds.within(bound, value) for value in inside)
    assert not any(bounds.within(bound, value) for value in outside)


def test_what_is_left_out_is_not_asked():
    assert not list(bounds.broken(SHARE, {"share": None}))
    assert not list(bounds.broken(SHARE, {"other": 7}))


def test_it_is_told_with_the_value_and_an_example():
    assert list(bounds.broken(SHARE, {"share": 1})) == [
        ("share", "share is at least 0 and below 1, not 1", "share: 0.05"),
    ]  # fmt: skip
    with pytest.raises(CardError, match="share is at least 0 and below 1, not 1") as caught:
        bounds.check(SHARE, share=1)
    assert (caught.value.at, caught.value.fix) == ("args.share", "share: 0.05")
    bounds.check(SHARE, share=0.5)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_layers_are_counted_from_one(value):
    what, _ = bounds.layers(value, 4)
    assert what == f"layers must be a whole number of at least 1, got {value!r}"


def test_layers_that_are_not_there():
    what, fix = bounds.layers(5, 4, "toy-llama")
    assert (what, fix) == ("layers is 5, and toy-llama has 4", "layers: 1 to 4; the paper takes half, 2")
    assert [bounds.layers(*given) for given in ((4, 4), (1, 4), (5, None), (None, 4))] == [None] * 4
