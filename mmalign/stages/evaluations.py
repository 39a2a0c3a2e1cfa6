"""Benchmarks measured while a training stage runs, on a few fixed items, which changes nothing of it."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mmalign.benchmarks import Benchmark, Probe, Question
from mmalign.benchmarks.filed import FiledBenchmark, NoAnswersError, score
from mmalign.benchmarks.headline import Headline
from mmalign.benchmarks.some import some
from mmalign.errors import CheckError
from mmalign.pipeline.task import Task
from mmalign.plan.recipe import BESIDE, Train
from mmalign.stages import evaluate
from mmalign.training.events import Events
from mmalign.vlm.model import VLM

BATCH = 32  # questions a pass


@dataclass
class Sample:
    """A benchmark and those of its questions that are asked; none of a probe, which looks at the model itself."""

    name: str
    bench: Benchmark | Probe
    questions: Sequence[Question] = ()
    total: int = 0  # of all that could be asked

    def measure(self, vlm: VLM) -> tuple[str, float]:
        """(metric, value) of its headline, over these questions alone."""
        if isinstance(self.bench, Probe):
            result = self.bench.measure(vlm)
            return result.headline, result.metrics[result.headline]
        texts = {question.id: text for question, text in vlm.answers(self.bench, self.questions, BATCH)}
        if len(texts) == len(self.bench.questions()):
            result = score(self.bench, texts)
            return result.headline, result.metrics[result.headline]
        result = score(self.bench, texts, gaps="lenient")  # what was not asked is wrong, and then left out
        headline = Headline.of(result)
        if headline is None:
            raise _undivided(self.name, self.total)
        return result.headline, headline.renamed({qid: qid for qid in texts}).value


def samples(task: Task, stage: Train) -> list[Sample]:
    """What the stage measures; before any weight is loaded.

    Raises DataError where files are missing or damaged, CheckError for what cannot be scored here, or not in part.
    """
    return [_sample(task, part.card, stage.evaluate_items) for part in stage.evaluate]


def _sample(task: Task, name: str, items: int) -> Sample:
    bench = evaluate.bench_of(task, f"{BESIDE}{name}")
    if isinstance(bench, Probe):
        return Sample(name, bench.limited(items))
    if isinstance(bench, FiledBenchmark):
        bench.ready()
    every = list(bench.questions())
    try:
        headline = Headline.of(score(bench, {question.id: "" for question in every}))
    except NoAnswersError as err:
        raise CheckError(f"{name}: {err.what}", at="evaluate", fix="a split with answers") from err
    if len(every) <= items:
        return Sample(name, bench, every, len(every))
    counted = [question for question in every if headline and question.id in headline.parts_of]
    if bench.joint or not counted:
        raise _undivided(name, len(every))
    return Sample(name, bench, some(counted, items), len(counted))


def _undivided(name: str, total: int) -> CheckError:
    what = f"{name} does not say how its score is made of its questions, so it cannot be measured on some of them"
    return CheckError(what, at="evaluate_items", fix=f"evaluate_items: {total}, all of them")


@dataclass
class Evaluations:
    """A watcher: before the first step, every `every` steps and at the last of `steps`, a line in evaluations.jsonl.

    A line holds `scores`, {benchmark: {metric: value}}, and `items`, {benchmark: how many questions}. Every rank
    answers all questions, in the same passes: under ZeRO-3 each of them takes part in gathering the weights.
    """

    vlm: VLM
    samples: Sequence[Sample]
    place: Path
    every: int
    steps: int
    events: Events
    count: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)  # they took
    began: float = field(default_factory=lambda: time.monotonic(), init=False)

    def __call__(self, done: int) -> bool:
        if done in (0, self.steps) or done % self.every == 0:
            before = time.monotonic()
            with self.vlm.evaluating(), torch.no_grad():
                measured = {sample.name: sample.measure(self.vlm) for sample in self.samples}
            self._write(done, measured)
            self.count, self.seconds = self.count + 1, self.seconds + time.monotonic() - before
        return False  # it never ends a stage

    def _write(self, done: int, measured: dict[str, tuple[str, float]]) -> None:
        told = ", ".join(f"{name} {metric} {value:.4g}" for name, (metric, value) in measured.items())
        self.events.say(f"step {done}: {told}")
        scores = {name: {metric: value} for name, (metric, value) in measured.items() if math.isfinite(value)}
        items = {sample.name: len(sample.questions) for sample in self.samples if sample.questions}
        if not self.events.rank:
            with open(self.place, "a", encoding="utf-8") as out:
                out.write(json.dumps({"step": done, "scores": scores, "items": items}) + "\n")

    def begin(self) -> None:
        """Say on how much is measured."""
        for sample in self.samples:
            if len(sample.questions) < sample.total:
                self.events.say(f"{sample.name}: measured on {len(sample.questions):,} of {sample.total:,} questions")

    def cost(self) -> str:
        share = self.seconds / max(1e-9, time.monotonic() - self.began)
        return f"evaluations: {self.count}, {self.seconds:.1f} s, {share:.1%} of the training"
