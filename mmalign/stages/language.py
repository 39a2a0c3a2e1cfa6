"""Trains the language model on text, from its weights or from none, until a gate opens or the steps are spent."""

from dataclasses import replace
from typing import Any, TypedDict, cast

import torch

from mmalign.benchmarks import Benchmark
from mmalign.errors import CardError
from mmalign.io import files
from mmalign.llms import LLM
from mmalign.objectives.lm import NextToken
from mmalign.pipeline import build
from mmalign.pipeline.build import DTYPES, in_precision
from mmalign.pipeline.task import Task
from mmalign.plan import building
from mmalign.plan.cards import Card
from mmalign.plan.recipe import Language
from mmalign.stages import compiling, evaluate, recomputing
from mmalign.training import account, optim
from mmalign.training.batches import BadSamples, Batches, Collate
from mmalign.training.engine import Engine, connect, world
from mmalign.training.events import Events
from mmalign.training.loop import Fit, Term
from mmalign.vlm.model import VLM
from mmalign.vlm.supervised import Supervised


def run(task: Task) -> dict[str, Any]:
    stage = cast(Language, task.stage)
    connect()
    compiling.check(stage)
    rank, ranks = world()
    events = Events(task.folder, rank)
    card = task.cards["llm"]
    torch.manual_seed(task.seed)
    if stage.from_ == "config":
        card = replace(card, args={**card.args, "random": True})
    llm = cast(LLM, building.build(card))
    llm.attend(stage.engine.attention)
    data = build.data(task.cards["data"])
    collate = Collate(data, llm.chat, None, 0, stage.max_length, BadSamples.of(0, task.folder), stage.prompt_weight)
    model = Supervised(VLM(None, None, llm), {"lm": NextToken()}).to(DTYPES[stage.precision])
    model.freeze_all_but(["llm"])
    compiling.apply(stage, model.vlm, events)
    recomputing.decide(task, stage, [llm], events)
    batches = Batches(
        collate, len(data), stage.batch, stage.batch // ranks, task.seed, rank, ranks, stage.engine.workers
    )
    groups = optim.groups(model.named_parameters(), stage.optim)
    engine = Engine(model, groups, stage.optim, stage.engine, stage.precision, stage.batch // ranks, 1)
    gate = Gate(task, stage, model.vlm) if stage.gate else None
    fit = Fit(
        engine, lambda start: batches.run(start, stage.steps), stage.steps, stage.optim, {"lm": Term(unit="tokens")},
        task.folder, events, stage.engine.save_every, stage.log_every, watchers=[gate] if gate else [],
        skip=stage.on_nan == "skip", samples=batches.samples, keep=stage.engine.keep,
    )  # fmt: skip
    last = fit.run()
    state = engine.weights("vlm.llm")
    if not rank:
        llm.save(task.folder / "weights" / "llm", in_precision(state, DTYPES[stage.precision]))
    told = {} if rank else account.of(task.folder, int(last["step"]) * stage.batch, stage.max_length, {}, data.left_out)
    if told:
        told |= {"account": [*fit.account(), *told["account"]], "warnings": [*told["warnings"], *fit.warnings()]}
    for line in [*told.get("account", []), *told.get("warnings", [])]:
        events.say(line)
    return {
        "metrics": last | (gate.report(events) if gate else {}),
        **told,
        "parts": {"llm": f"{task.folder.name}/weights/llm"},
    }


class Look(TypedDict):
    """gate.json."""

    value: float


class Gate:
    """Asked after every step: is the metric high enough to stop?"""

    def __init__(self, task: Task, stage: Language, vlm: VLM) -> None:
        assert stage.gate is not None
        self.settings, self.vlm = stage.gate, vlm
        card: Card = task.cards["gate"]
        bench = evaluate.bench_of(task, "gate")
        if not isinstance(bench, Benchmark):
            raise CardError(f"{card.name!r} asks no questions, so it cannot be a gate", at=card.path)
        self.bench, self.place = bench, task.folder / "gate.json"
        self.value: float = (
            files.read_json(self.place, kind=Look)["value"] if self.place.exists() else 0.0
        )  # an earlier look's

    def __call__(self, done: int) -> bool:
        if not done or done % self.settings.every:
            return False
        with self.vlm.evaluating():
            replies = self.vlm.answers(self.bench, self.bench.questions(), batch=64)
            score = self.bench.score({question.id: text for question, text in replies})
        if self.settings.metric not in score.metrics:
            what = f"the gate's benchmark has no metric {self.settings.metric!r}"
            raise CardError(what, at="gate.metric", fix="one of " + ", ".join(score.metrics))
        self.value = score.metrics[self.settings.metric]
        files.write_json(self.place, {"step": done, "value": self.value, "metrics": score.metrics})
        return self.value >= self.settings.at_least

    def report(self, events: Events) -> dict[str, float]:
        """How the gate stands; a cap that was hit is said aloud."""
        opened = self.value >= self.settings.at_least
        if not opened:
            events.say(
                f"the gate stayed shut: {self.settings.metric} is {self.value:.3g}, below {self.settings.at_least:g}"
            )
        return {"gate": self.value, "gate_open": float(opened)}
