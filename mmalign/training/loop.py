"""The training loop: passes, steps, logs and checkpoints; a killed run goes on to the same weights."""

import json
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mmalign.errors import StageError, Stopped
from mmalign.io import beats, files
from mmalign.io.signals import on_sigterm
from mmalign.plan.recipe import EngineSettings, Optim
from mmalign.training import checkpoint
from mmalign.training.account import CUTS
from mmalign.training.engine import Engine, world
from mmalign.training.events import Events
from mmalign.training.later import Later
from mmalign.training.optim import factor
from mmalign.training.spikes import Spikes
from mmalign.training.usage import Usage
from mmalign.training.writer import Writer

UNITS = ("tokens", "images")  # what a loss is a mean over
PROCESSES = "processes"  # in a checkpoint: [step, number of processes from there on] of the run so far
SKIPPED = "skipped"  # in a checkpoint: steps that were left out before it
CALM = "a lower learning rate, or precision: fp32"
READS = "waits for samples"
IN_A_ROW = 10  # steps that may be left out one behind the other
LINE = "line/"  # what the names of a checkpoint begin with that belong to the line of the log that is not written yet


@dataclass(frozen=True)
class Term:
    """How an objective enters the loss. warmup: fraction of the steps over which its weight rises from 0."""

    weight: float = 1.0
    unit: str = "images"  # one of UNITS
    warmup: float = 0.0

    def at(self, step: int, steps: int) -> float:
        """Its weight at a step (0-based)."""
        return self.weight * min(1.0, (step + 1) / (self.warmup * steps)) if self.warmup else self.weight


@dataclass
class Fit:
    """A training run. terms: {objective: weight and unit}; batches: step -> this rank's passes, from that step on.

    A pass is a micro-batch with `units` ({unit: how many}), `cuts` ({one of CUTS: how many}), `seed`, `ids` and
    `to(device)`; the engine's module makes ({objective: its loss}, {note: value}) of it. save_every, log_every: steps.

    Every number logged is the exact mean over its unit: over passes, ranks and the steps since the last line; cuts are
    added up, and the peak of memory is that of the process that took the most.

    Between two lines of the log nothing here waits for the device: the loop hands it one step after the other. What
    does wait, once a step, is the optimizer, which looks whether the gradient is finite before it moves weights.

    SIGTERM, to any rank, ends the run behind the step in work, with a checkpoint, which a later run goes on from.

    A step with a loss or a gradient that is not finite never moves weights. It ends the run, or with `skip` is left
    out, on all ranks, of weights, optimizer and log alike, up to IN_A_ROW of them; its samples are written down in
    nonfinite.jsonl either way. Gradients and losses that are finite and far above those before are told, see spikes.py.
    """

    engine: Engine
    batches: Callable[[int], Iterator[list[Any]]]
    steps: int
    optim: Optim
    terms: Mapping[str, Term]
    folder: Path
    events: Events
    save_every: int
    log_every: int
    # called with the steps done, before the first one (0) and after each; a True after a step: enough
    watchers: Sequence[Callable[[int], bool]] = ()
    skip: bool = False  # leave steps out that are not finite
    samples: Callable[[int], Sequence[str]] | None = None  # step (from 0) -> ids of its samples, over all ranks
    keep: int = EngineSettings.keep  # checkpoints
    skipped: int = field(default=0, init=False)  # such steps, over all sessions of the run
    processes: list[list[int]] = field(default_factory=list, init=False)  # [step, how many from there on]
    _sums: dict[str, Tensor] = field(default_factory=dict, init=False)  # since the last line of the log
    _logged: int = field(default=0, init=False)  # the step of that line
    _clock: float = field(default=0.0, init=False)  # seconds, when it was written
    _usage: Usage = field(init=False)
    _out: int = field(default=0, init=False)  # steps left out since that line
    _row: int = field(default=0, init=False)  # steps left out since the last that was not
    _ending: Later | float = field(default=0.0, init=False)  # how many ranks heard SIGTERM before this step
    _spikes: Spikes = field(init=False)
    _unseen: tuple[Later | float, int] | None = field(default=None, init=False)  # a norm, and the steps done by then

    def __post_init__(self) -> None:
        warm = max(self.optim.warmup, *(term.warmup for term in self.terms.values()))
        self._spikes = Spikes(self.folder, self.events, math.ceil(warm * self.steps), self.samples)

    def run(self) -> dict[str, float]:
        """Train to the end; returns the last line of the log.

        StageError where a loss or its gradient is not finite and is not left out; Stopped where SIGTERM came.
        """
        told = threading.Event()
        writer = Writer(self.folder / "checkpoints", world()[0], self.keep)
        with on_sigterm(told.set), writer, ExitStack() as stack:
            return self._run(told.is_set, writer, stack)

    def warnings(self) -> list[str]:
        """That steps were left out, that there were spikes, and how many; nothing where there were none."""
        spikes = self._spikes.warnings()
        if not self.skipped:
            return spikes
        told = f"{self.skipped:,} of {self.steps:,} steps were not finite and left out"
        return [f"{told}, see {self.folder.name}/nonfinite.jsonl", *spikes]

    def _run(self, asked: Callable[[], bool], writer: Writer, stack: ExitStack) -> dict[str, float]:
        start = saved = self._resume()
        self._usage = Usage(self.engine.device)
        self._clock = time.monotonic()
        metrics: dict[str, float] = {}
        if not start:
            self._watched(0)
        batches = self.batches(start)
        if isinstance(batches, Generator):
            stack.callback(batches.close)  # who reads ahead ends with the loop, however that ends
        beats.tell(start, "steps", READS)
        for step, passes in enumerate(batches, start):
            beats.tell(step, "steps", "trains")
            sums = dict(self._sums)
            norm = self._step(step, passes, asked())
            done = step + 1
            self._usage.look()

            if isinstance(norm, float) and not math.isfinite(norm):
                self._not_finite(done, norm, passes, sums)
            else:
                self._row = 0
                self._see(norm, done)
            stopped = self._watched(done)
            if stopped or done % self.log_every == 0 or done == self.steps:
                self._see()
                metrics = self._log(done, norm) or metrics
            fresh = metrics if done == self._logged else {}
            self.events.progress(done, self.steps, "steps", {k: v for k, v in fresh.items() if k != "step"})
            if stopped:
                break

            ending = bool(self._ending)
            # otherwise only where a line of the log ends
            if done < self.steps and (ending or (done == self._logged and done - saved >= self.save_every)):
                self._see()
                beats.tell(done, "steps", "saves a checkpoint")
                writer.save(done, self._state(done), self.engine.state_bytes)
                saved = done
            writer.look()
            if done < self.steps and ending:
                writer.wait()
                if world()[1] > 1:  # who ends first is the end of all, see torchrun
                    dist.barrier()
                raise Stopped("ended by SIGTERM", at=f"step {done}", fix="the same command goes on")
            beats.tell(done, "steps", READS)
        return metrics or self._last()

    def _see(self, norm: Tensor | float | None = None, done: int = 0) -> None:
        """Look whether the norm before this one is a spike: to read this one now would wait for the device."""
        if self._unseen:
            self._spikes.see("norm", float(self._unseen[0]), self._unseen[1])
        self._unseen = None if norm is None else (Later(norm) if isinstance(norm, Tensor) else norm, done)

    def _last(self) -> dict[str, float]:
        """The last line of the log, of a run that left out every step since it was resumed."""
        if lines := self._lines():
            return lines[-1]
        raise StageError(f"none of {self.steps} steps was finite", at="nonfinite.jsonl", fix=CALM)

    def _lines(self) -> list[dict[str, float]]:
        """The lines of the log so far."""
        log = self.folder / "metrics.jsonl"
        return list(files.read_jsonl(log, kind=dict[str, float])) if log.exists() else []

    def _state(self, done: int) -> Iterator[tuple[str, Tensor]]:
        """What a checkpoint holds: the engine's, and the line of the log that has begun, to be ended as if nothing
        had happened."""
        yield from self.engine.state()
        yield PROCESSES, torch.tensor(self.processes)
        if self.skipped:
            yield SKIPPED, torch.tensor(self.skipped)
        if self._logged < done:
            yield f"{LINE}logged", torch.tensor(float(self._logged))
            yield f"{LINE}out", torch.tensor(float(self._out))
            for name, value in self._reduced().items():  # of all ranks
                yield LINE + name, torch.tensor(value)

    def _watched(self, done: int) -> bool:
        """Whether a watcher says enough; all are asked, and what they take counts as no step's time."""
        began = time.monotonic()
        beats.tell(done, "steps", "looks and evaluates" if self.watchers else None)
        enough = [watcher(done) for watcher in self.watchers]
        self._clock += time.monotonic() - began
        return any(enough)

    def _resume(self) -> int:
        """The step to go on from; the logs are cut back to it, to nothing where there is no checkpoint."""
        newest = self._newest()
        step = self._logged = 0
        if newest:
            step, state = newest
            self.skipped = int(state.get(SKIPPED, 0))
            self.engine.load_state(state, step - self.skipped)
            self._take_up(state, step)
            self.processes = state.get(PROCESSES, torch.zeros(0, 2)).int().tolist()
            self.events.say(f"goes on from step {step}")
        self._told(step)
        if not world()[0]:
            for log in self.folder.glob("*.jsonl"):
                kept = log.name.startswith(("events.", "bad."))
                if damaged := 0 if kept else checkpoint.trim(log, step if newest else -1):
                    self.events.say(f"{log.name}: {damaged} damaged lines are left out")
            self._spikes.resume(self._lines())
        return step

    def _told(self, step: int) -> None:
        """Note from which step on how many processes train, and say so where it were others before."""
        now = world()[1]
        before = self.processes[-1][1] if self.processes else now
        if before != now:
            told = "the same samples in the same steps; sums are added in another order, so numbers differ by rounding"
            self.events.say(f"{now} {_processes(now)} from here on, {before} before: {told}, about 1e-5 in fp32")
        if before != now or not self.processes:
            self.processes.append([step, now])

    def account(self) -> list[str]:
        """That the number of processes changed, and when; nothing where it did not."""
        told = [f"{number} {_processes(number)} from step {step} on" for step, number in self.processes]
        return [f"trained by {', '.join(told)}"] if len(told) > 1 else []

    def _take_up(self, state: dict[str, Tensor], step: int) -> None:
        """Go on with the line of the log that a checkpoint stands in; its sums, of all ranks, count once."""
        line = {name.removeprefix(LINE): float(value) for name, value in state.items() if name.startswith(LINE)}
        self._logged, self._out = int(line.pop("logged", step)), int(line.pop("out", 0))
        if not world()[0]:
            for name, value in line.items():
                self._add(name, value)

    def _newest(self) -> tuple[int, dict[str, Tensor]] | None:
        """(step, state) of the checkpoint to go on from: the first process says which, the others read it too."""
        rank, ranks = world()
        newest = None if rank else checkpoint.last(self.folder / "checkpoints", self.events.say)
        if ranks == 1:
            return newest and newest[1:]
        place = [newest and newest[0]]
        dist.broadcast_object_list(place)
        return (newest[1:] if newest else checkpoint.load(place[0], check=False)) if place[0] else None

    def _step(self, step: int, passes: list[Any], asked: bool = False) -> Tensor | float | None:
        """Forward and backward of every pass, then the weights move; returns the norm of the gradient, see Engine.step.

        asked: whether this rank is to end; that is summed up with the rest, so that all ranks end behind one step.
        """
        # how much of each unit the whole step holds, over passes and ranks
        rows = [[*(batch.units[unit] for unit in UNITS), 0.0] for batch in passes]
        counts = torch.tensor([*rows, [0.0] * len(UNITS) + [float(asked)]], dtype=torch.float64).sum(0)
        counts = counts.float().to(self.engine.device, non_blocking=True)
        self._ending = float(asked)
        if world()[1] > 1:
            dist.all_reduce(counts)
            self._ending = Later(counts[-1])
        *sizes, _ = counts
        total = dict(zip(UNITS, sizes, strict=True))

        weights = {name: term.at(step, self.steps) for name, term in self.terms.items()}
        scale = self.engine.passes * world()[1]  # DeepSpeed takes the mean over passes and ranks
        norm: Tensor | float | None = None
        for number, batch in enumerate(passes):
            torch.manual_seed(batch.seed)
            losses, notes = self.engine(batch.to(self.engine.device))
            # a pass's share of the step: means of passes, so weighted, add up to the mean of the step
            share = {unit: batch.units[unit] / total[unit].clamp(min=1e-9) for unit in UNITS}
            loss = sum(share[self.terms[name].unit] * (weights[name] * value) for name, value in losses.items())
            assert isinstance(loss, Tensor)

            self._add("loss", loss)
            for name, value in losses.items():
                self._add(name, value.detach().float() * share[self.terms[name].unit])
            for name, value in notes.items():
                self._add(f"note.{name}", value)
                self._add(f"noted.{name}", 1.0)
            for unit in UNITS:
                self._add(unit, batch.units[unit])
            self._add("samples", len(batch.ids))
            for name, count in batch.cuts.items():
                self._add(name, count)

            # a loss that is not finite has such a gradient, and is caught by its norm, with all ranks agreeing
            self.engine.backward(loss * scale * (loss.detach() * 0 + 1))
            norm = self.engine.step(factor(step, self.steps, self.optim), last=number == len(passes) - 1)
        return norm

    def _add(self, name: str, value: Tensor | float) -> None:
        """To the sums of the next line: of tensors where they are, for to read them there, as to copy a number there,
        would wait for the device."""
        value = torch.as_tensor(value, dtype=torch.float32).detach()
        self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value

    def _not_finite(self, done: int, norm: float, passes: list[Any], sums: dict[str, Tensor]) -> None:
        """Write down a step that is not finite, and leave it out of the line of the log; a StageError where it ends the
        run. sums: as they were before it."""
        own = {name: value - sums.get(name, 0) for name, value in self._sums.items()}
        self._sums = own
        values = self._reduced()
        self._sums = sums
        terms = {f"loss term {name!r}": values[name] for name in self.terms if not math.isfinite(values[name])}
        what, value = next(iter((terms or {"norm of the gradient": norm}).items()))
        samples = _gathered([name for batch in passes for name in batch.ids])
        if not world()[0]:
            with open(self.folder / "nonfinite.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps({"step": done, "what": what, "value": str(value), "samples": samples}) + "\n")
        self._out, self._row, self.skipped = self._out + 1, self._row + 1, self.skipped + 1
        told = f"the {what} is {value} by step {done}"
        if not self.skip or self._row == IN_A_ROW:
            many = f", and so were the {IN_A_ROW - 1} before it" if self.skip else ""
            names = f"samples {', '.join(samples[:4])}{', ...' if len(samples) > 4 else ''}, see nonfinite.jsonl"
            raise StageError(told + many, at=names, fix=CALM + ("" if self.skip else ", or on_nan: skip"))
        self.events.say(f"{told}: left out, see nonfinite.jsonl")

    def _log(self, done: int, norm: Tensor | float | None) -> dict[str, float]:
        """Write a line to metrics.jsonl: means since the last one; nothing where all steps since then were left out."""
        steps, seconds = done - self._logged - self._out, time.monotonic() - self._clock
        since, self._logged, self._out, self._clock = self._logged, done, 0, time.monotonic()
        if not steps:
            return {}
        sums, norm = self._reduced(), None if norm is None else float(norm)

        losses = {name: sums[name] / steps for name in ("loss", *self.terms)}
        notes = [name.removeprefix("note.") for name in sums if name.startswith("note.")]
        line = {
            "step": done,
            **losses,
            **{name: sums[f"note.{name}"] / sums[f"noted.{name}"] for name in notes},
            **{unit: sums[unit] / steps for unit in (*UNITS, "samples")},
            **{name: sums[name] for name in CUTS if name in sums},
            **({} if norm is None or not math.isfinite(norm) else {"norm": norm}),
            "lr": self.optim.lr * factor(done - 1, self.steps, self.optim),
            "steps_per_second": steps / max(1e-9, seconds),
            **self._usage.line(),
        }
        if not world()[0]:
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps({**line, "time": round(time.time(), 3)}) + "\n")  # seconds since 1970
        self._spikes.see("loss", line["loss"], done, since)
        return line

    def _reduced(self) -> dict[str, float]:
        """The sums since the last line, over all ranks; a rank may lack a note another has."""
        ranks, names = world()[1], sorted(self._sums)
        if ranks > 1:
            names_of: list[list[str]] = [[] for _ in range(ranks)]
            dist.all_gather_object(names_of, names)
            names = sorted(set().union(*names_of))
        zero, device = torch.zeros(()), self.engine.device
        sums = torch.stack([self._sums.get(name, zero).to(device) for name in names])
        if ranks > 1:
            dist.all_reduce(sums)
        self._sums.clear()
        return dict(zip(names, sums.tolist(), strict=True))


def _processes(number: int) -> str:
    return "process" if number == 1 else "processes"


def _gathered(names: list[str]) -> list[str]:
    """The lists of all ranks as one."""
    if world()[1] == 1:
        return names
    of_rank: list[list[str]] = [[] for _ in range(world()[1])]
    dist.all_gather_object(of_rank, names)
    return [name for own in of_rank for name in own]
