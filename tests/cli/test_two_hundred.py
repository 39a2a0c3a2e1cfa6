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


def ended(folder, share, sizes, seed):
    """The run that is ended so often, and the folder of the one that is left alone."""
    with Warm() as warm:
        run = Run(folder, max(2, round(share * COUNT)), sizes, SEED + seed, warm)
        alone = run.whole(sizes[0], "alone")
        run.through()
    assert not list(run.runs.rglob("*.part"))
    sys.stderr.write(
        f"{sum(run.ends.values()) - 1} endings: {dict(run.ends)}; {dict(run.moments)}; {dict(run.resumed)}\n"
    )
    return run, alone


@pytest.mark.parametrize(("sizes", "share"), [((1,), 0.7), ((2,), 0.1)])
def test_the_same_bits(tmp_path, sizes, share):
    run, alone = ended(tmp_path, share, sizes, sizes[0])
    ours, theirs = endings.weights(run.runs), endings.weights(alone)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert endings.numbers(run.runs) == endings.numbers(alone)


def test_on_one_process_and_two_by_turns(tmp_path):
    run, alone = ended(tmp_path, 0.2, (1, 2), 3)
    difference = worst(endings.weights(run.runs), endings.weights(alone))
    sys.stderr.write(f"worst difference {difference:.2e}\n")
    assert difference <= 1e-5
    rows, wanted = endings.numbers(run.runs), endings.numbers(alone)
    assert [row["step"] for row in rows] == [row["step"] for row in wanted]
    assert max(abs(row["loss"] / want["loss"] - 1) for row, want in zip(rows, wanted, strict=True)) <= 1e-5
