"""Training on a mixture of cards, its samples grouped by length: what a pass pads, and that every record is seen."""

import json
from collections import Counter
from pathlib import Path

import pytest

from mmalign.data import order
from mmalign.pipeline import build, task
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.plan.recipe import Train
from mmalign.stages import supply, train
from mmalign.training.batches import Batches
from mmalign.training.events import Events
from tests.conftest import TINY

MIXED = "{card: mixture, args: {data: [{card: toy-chat, args: {size: 40}}, {card: toy-texts, args: {size: 90}}]}}"
WORDS = [
    "stages.label=~", "stages.align=~", "stages.score=~", "stages.report=~", "stages.tune.reads=~",
    "stages.tune.steps=~", "stages.tune.epochs=1", "stages.tune.batch=16",
    "stages.tune.group_by_length=epoch", f"stages.tune.data={MIXED}",
]  # fmt: skip


@pytest.fixture
def given(here: Path, monkeypatch: pytest.MonkeyPatch) -> task.Task:
    monkeypatch.setenv("MMALIGN_CACHE", str(here / "cache"))
    (here / "tiny.yaml").write_text(TINY)
    (node,) = graph.plan(compose.load("tiny.yaml", WORDS), here / "runs")
    task.save(node)
    return task.load(node.folder)


def batches(given: task.Task) -> Batches:
    stage = given.stage
    assert isinstance(stage, Train)
    vlm, data = build.vlm(given), build.data(given.cards["data"])
    made = supply.supply(given, stage, vlm, data, Events(given.folder))
    collate = train._collate(given, stage, vlm, data, made)
    ordered = train._by_length(given, stage, collate)
    return Batches(collate, len(data), stage.batch, stage.micro_batch, given.seed, workers=0, order=ordered)


def test_hardly_anything_is_padded(given: task.Task, monkeypatch: pytest.MonkeyPatch) -> None:
    made = batches(given)
    steps = list(made.run(0, made.steps(1)))
    seen = Counter(id_ for step in steps for one in step for id_ in one.ids)
    assert set(seen) == {record.id for record in made.collate.data}
    every = [one for step in steps[1:-1] for one in step]
    real = sum(int((one.mask_RS > 0).sum()) for one in every)
    plain = Batches(made.collate, made.rows, made.batch, made.micro, made.seed, workers=0)
    drawn = [one for step in plain.run(0, plain.steps(1)) for one in step]
    padded, at_random = (sum(one.mask_RS.numel() for one in some) for some in (every, drawn))
    assert padded / real < 1.03
    assert at_random / sum(int((one.mask_RS > 0).sum()) for one in drawn) > 1.2
    pictured = [{len(one.ids) - one.images for one in step} for step in steps[1:-1]]
    assert sum(kinds <= {0} or kinds <= {4} for kinds in pictured) >= len(pictured) - 1  # each step of one kind
    monkeypatch.setattr(order, "lengths", None)  # measured once, and kept
    assert batches(given).numbers(1) == made.numbers(1)


def test_a_stage_runs_through_all_of_it(given: task.Task) -> None:
    task.finish(given, train.run(given), 0.0, 1)
    assert task.done(given.folder)["bad"] == 0
    rows = [json.loads(line) for line in (given.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 9  # steps of 16, for 130 records
    assert 40 <= sum(row["images"] for row in rows) <= 54  # the 14 records behind the epoch's end may have images
