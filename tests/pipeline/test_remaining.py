"""The time that stages which wait will take: of alike ones that were run, else nothing is said."""

import json

import pytest

from mmalign.pipeline import remaining, task
from mmalign.pipeline.records import planned
from mmalign.plan import graph
from mmalign.plan import read as compose


@pytest.fixture
def stages(tiny):
    return lambda *words: {node.name: node for node in graph.plan(compose.load(tiny, words), "runs")}


def took(node, seconds, devices=1, **more):
    task.save(node)
    task.finish(task.load(node.folder), {"metrics": {}, **more}, 0.0, devices)
    place = node.folder / "stage.json"
    about = json.loads(place.read_text())
    place.write_text(json.dumps({**about, "seconds": seconds}))


def expected(node, devices=1):
    return remaining.Times(node.folder.parent, [node.stage.kind]).of(planned(node, devices))


def test_as_long_as_an_alike_one(stages):
    assert expected(stages()["align"]) is None
    took(stages()["align"], 60.0)
    assert expected(stages("seed=4")["align"]) == 60
    assert expected(stages("stages.align.optim.lr=0.5")["align"]) == 60
    assert expected(stages("stages.align.steps=9")["align"]) == 90
    assert expected(stages("stages.label.keep=2")["align"]) == 60  # it reads other labels
    took(stages("stages.align.optim.lr=0.5")["align"], 80.0)
    assert expected(stages()["align"]) == 80  # the newest


@pytest.mark.parametrize(
    "words", ["stages.align.batch=16", "stages.align.objectives.sea=~", "model.adapter=mlp2x-gelu"]
)
def test_nothing_is_said_of_what_is_not_alike(stages, words):
    took(stages()["align"], 60.0)
    assert expected(stages(words)["align"]) is None
    assert expected(stages()["tune"]) is None


def test_nothing_is_said_by_other_devices_or_by_one_that_was_begun_before(stages):
    took(stages()["align"], 60.0)
    assert expected(stages()["align"], devices=2) is None
    took(stages()["align"], 6.0, resumed=True)
    assert expected(stages()["align"]) is None


def test_a_report_is_made_by_one_process(stages):
    took(stages()["report"], 2.0)
    assert expected(stages("seed=4")["report"], devices=8) == 2


def test_what_cannot_be_read_says_nothing(stages):
    took(stages()["align"], 60.0)
    for text in ("", "[]", '{"kind": "train"}'):
        (stages()["align"].folder / "stage.json").write_text(text)
        assert expected(stages()["align"]) is None
