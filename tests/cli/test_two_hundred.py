"""A training that is ended again and again, in every way and at random moments: the same command always goes on, to
the same weights and log.

MMALIGN_ENDINGS says how many endings, MMALIGN_ENDINGS_SEED which.
"""

import os
import sys

import pytest
import torch

from tests.cli import endings
from tests.cli.endings import Run
from tests.cli.warm import Warm

pytestmark = pytest.mark.slow
COUNT = int(os.environ.get("MMALIGN_ENDINGS", "20"))
SEED = int(os.environ.get("MMALIGN_ENDINGS_SEED", "1"))


def worst(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """The largest difference of two sets of weights, as a share of the largest weight."""
    assert one.keys() == two.keys()
    largest = max(value.abs().max().item() for value in one.values())
    return max((value - two[name]).abs().max().item() for name, value in one.items()) / largest


@pytest.fixture(scope="module")
def warm():
    with Warm() as one:
        yield one


def ended(folder, share, sizes, warm, compare):
    """A run that is ended so often, compared with one that is left alone."""

    def over(run):
        assert not list(run.runs.rglob("*.part"))
        ours, theirs = endings.numbers(run.runs), endings.numbers(alone)
        assert [row["step"] for row in ours] == [row["step"] for row in theirs]
        compare(run.runs, alone)

    run = Run(folder, max(2, round(share * COUNT)), sizes, SEED + sum(sizes), warm, over)
    alone = run.whole(sizes[0], "alone")
    run.through()
    counts = "; ".join(str(dict(count)) for count in (run.ends, run.moments, run.resumed))
    sys.stderr.write(f"{run.ends.total() - run.ends['its own']} endings: {counts}\n")


def same(runs, alone):
    ours, theirs = endings.weights(runs), endings.weights(alone)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert endings.numbers(runs) == endings.numbers(alone)


def near(runs, alone):
    difference = worst(endings.weights(runs), endings.weights(alone))
    ours, theirs = endings.numbers(runs), endings.numbers(alone)
    losses = max(abs(row["loss"] / want["loss"] - 1) for row, want in zip(ours, theirs, strict=True))
    sys.stderr.write(f"worst difference of weights {difference:.2e}, of losses {losses:.2e}\n")
    assert difference <= 1e-5
    assert losses <= 1e-5


@pytest.mark.parametrize(("sizes", "share"), [((1,), 0.7), ((2,), 0.1)])
def test_the_same_bits(tmp_path, warm, sizes, share):
    ended(tmp_path, share, sizes, warm, same)


def test_on_one_process_and_two_by_turns(tmp_path, warm):
    ended(tmp_path, 0.2, (1, 2), warm, near)
