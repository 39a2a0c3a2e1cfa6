"""A training step of Fit and Engine against a plain PyTorch loop over the same model and the same batches."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mmalign.pipeline import task
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.plan.recipe import Train
from mmalign.stages import supply, train
from mmalign.training import optim
from mmalign.training.engine import device
from mmalign.training.events import Events

from . import Pairs, seconds
from ._work import wall

TARGET = 1.10
STEPS = 33
WARM = 3  # steps of each that are not measured
WORDS = [
    "stages.label=~", "stages.tune=~", "stages.score=~", "stages.report=~", "stages.align.reads=~",
    "stages.align.labels=toy-truth", "stages.align.trains=[adapter, llm]", "stages.align.micro_batch=16",
    "stages.align.engine.workers=0", f"stages.align.steps={STEPS}",
]  # fmt: skip


def measure() -> Pairs:
    torch.set_num_threads(1)
    found = Pairs()
    with tempfile.TemporaryDirectory() as folder:
        (node,) = graph.plan(compose.load("quickstart", WORDS), Path(folder))
        task.save(node)
        given = task.load(node.folder)
        stage = given.stage
        assert isinstance(stage, Train)
        ours, theirs = _Made(given, stage), _Made(given, stage)
        passes = [list(step) for step in ours.batches.run(0, STEPS)]
        plain = _plain(theirs, stage)
        ours.batches.run = lambda *_: _in_turn(passes, plain, found)  # type: ignore[method-assign]
        engine = train._engine(stage, ours.model, ours.batches)
        train._fit(given, stage, engine, ours.batches, STEPS, ours.model, Events(given.folder), None).run()
    found.ours, found.reference = found.ours[WARM:], found.reference[WARM:]
    return found


class _Made:
    """The model and the batches of a training stage."""

    def __init__(self, given: task.Task, stage: Train) -> None:
        vlm, data = train.build.vlm(given), train.build.data(given.cards["data"])
        labels = supply.supply(given, stage, vlm, data, Events(given.folder))
        collate = train._collate(given, stage, vlm, data, labels)
        self.model = train._supervised(given, stage, vlm, labels, distributed=False)
        self.batches = train.Batches(collate, len(data), stage.batch, stage.micro_batch, given.seed, workers=0)
        train._probe(self.model, collate)


def _in_turn(passes: list[list[Any]], plain: Any, found: Pairs) -> Iterator[list[Any]]:
    """Hands Fit its batches; between two of its steps the plain loop makes the same step."""
    for step in passes:
        found.reference.append(seconds(lambda: plain(step), wall))  # noqa: B023
        began = wall()
        yield step
        found.ours.append(wall() - began)


def _plain(made: _Made, stage: Train) -> Any:
    groups = optim.groups(made.model.named_parameters(), stage.optim)
    adam = optim.optimizer(groups, stage.optim)
    weights = [p for group in groups for p in group.params]
    done = 0

    def step(passes: list[Any]) -> float:
        nonlocal done
        total = 0.0
        for batch in passes:
            torch.manual_seed(batch.seed)
            terms, _ = made.model(batch.to(device()))
            loss = sum(stage.objectives[name].weight * term for name, term in terms.items()) / len(passes)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(weights, stage.optim.clip)
        for group, settings in zip(groups, adam.param_groups, strict=True):
            settings["lr"] = group.lr * optim.factor(done, STEPS, stage.optim)
        adam.step()
        adam.zero_grad()
        done += 1
        return total

    return step
