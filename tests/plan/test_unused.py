"""What is set about looks and evaluations where there are none is told, and only there."""

import pytest

from mmalign.plan import read as compose
from mmalign.plan.check import check

LOOKS = ["stages.align.watch_every=7", "stages.align.watch_readouts=[lens]"]
SCORES = ["stages.align.evaluate_every=7", "stages.align.evaluate_items=9"]
BASIC = "stages.align.objectives={lm: 1.0, basic-direction: 1.0}"
NONE_WATCHED = "have no effect, nothing is watched (watch: [premise])"
NONE_EVALUATED = "have no effect, nothing is evaluated in this stage (evaluate: [BENCHMARK])"


def notes(*words):
    return check(compose.load("tiny.yaml", words))


@pytest.mark.usefixtures("tiny")
def test_what_has_no_effect_is_told_and_what_would_give_it_one():
    assert notes(*LOOKS) == [f"stage 'align': watch_every and watch_readouts {NONE_WATCHED}"]
    assert notes(LOOKS[1])[0].startswith("stage 'align': watch_readouts has no effect, nothing is watched")
    assert notes(*SCORES) == [f"stage 'align': evaluate_every and evaluate_items {NONE_EVALUATED}"]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "words",
    [
        [*LOOKS, "stages.align.watch=[premise]"],
        [*LOOKS, BASIC],
        [*SCORES, "stages.align.evaluate=[toy-pope]"],
        ["stages.align.watch_every=100", "stages.align.watch_readouts=[input]"],  # the defaults
    ],
)
def test_nothing_is_told_where_it_has_one(words):
    assert notes(*words) == []
