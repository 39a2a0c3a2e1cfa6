"""The training loop: passes, steps, logs and checkpoints; a killed run goes on to the same weights."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mmalign.errors import StageError
from mmalign.plan.recipe import Optim
from mmalign.training import checkpoint
from mmalign.training.engine import Engine, world
from mmalign.training.events import Events
from mmalign.training.optim import factor

UNITS = ("tokens", "images")


@dataclass(frozen=True)
class Term:
    """How an objective enters the loss. warmup: fraction of the steps over which its weight rises from 0."""

    weight: float = 1.0
    unit: str = "images"
    warmup: float = 0.0

    def at(self, step: int, steps: int) -> float:
        """Its weight at a step (0-based)."""
        return self.weight * min(1.0, (step + 1) / (self.warmup * steps)) if self.warmup else self.weight


@dataclass
class Fit:
    """A training run. terms: {objective: weight and unit}; batches: step -> this rank's passes, from that step on.

    Every number logged is the exact mean over its unit: over passes, ranks and the steps since the last line.
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
    stop: Callable[[int], bool] | None = None  # asked after every step: enough?
    sums: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)  # kept in checkpoints beside the state
    _logged: int = 0  # the step of the last line

    def run(self) -> dict[str, float]:
        """Train to the end; returns the last line of the log."""
        rank, _ = world()
        start = self._logged = self._resume()
        last: dict[str, float] = {}
        began, seen, saved = time.monotonic(), start, start
        for step, passes in enumerate(self.batches(start), start):
            norm = self._step(step, passes)
            done = step + 1
            broken = norm is not None and not math.isfinite(norm)  # DeepSpeed leaves such a step out, or writes NaN
            enough = not broken and self.stop is not None and self.stop(done)
            if broken or enough or done % self.log_every == 0 or done == self.steps:
                pace = (done - seen) / max(1e-9, time.monotonic() - began)
                began, seen = time.monotonic(), done
                last = self._log(done, norm, pace, passes)
            self.events.progress(done, self.steps, **({"loss": last["loss"]} if last else {}))
            if enough:
                break
            if done == self._logged and done - saved >= self.save_every and done < self.steps:
                checkpoint.save(self.folder / "checkpoints", done, self.engine.state(), self.extra, rank)
                saved = done  # only where a line of the log ends, so that a resumed log is the same too
        return last

    def _resume(self) -> int:
        """The step to go on from; the log is cut back to it."""
        place = checkpoint.newest(self.folder / "checkpoints")
        step = 0
        if place:
            step, state, extra = checkpoint.load(place)
            self.engine.load_state(state, step)
            self.extra.update(extra)
            self.events.say(f"goes on from step {step}")
        if not world()[0]:
            for log in self.folder.glob("*.jsonl"):
                if not log.name.startswith(("events.", "bad.")):
                    checkpoint.trim(log, step)
        return step

    def _step(self, step: int, passes: list[Any]) -> float | None:
        total = self._total(passes)
        norm = None
        for number, batch in enumerate(passes):
            torch.manual_seed(batch.seed)
            terms, notes = self.engine(batch.to(self.engine.device))
            share = {unit: self._share(batch, unit, total[unit]) for unit in UNITS}
            scale = self.engine.passes * world()[1]  # DeepSpeed takes the mean over passes and ranks
            weighted = {name: self.terms[name].at(step, self.steps) * term for name, term in terms.items()}
            loss = sum(share[self.terms[name].unit] * term for name, term in weighted.items())
            assert isinstance(loss, Tensor)
            self._count(loss, terms, notes, share, batch)
            self.engine.backward(loss * scale)
            norm = self.engine.step(factor(step, self.steps, self.optim), last=number == len(passes) - 1)
        return norm

    def _total(self, passes: list[Any]) -> dict[str, Tensor]:
        """How much of each unit the whole step holds, over passes and ranks."""
        own = torch.tensor([[b.units[unit] for unit in UNITS] for b in passes], dtype=torch.float64).sum(0)
        own = own.float().to(self.engine.device)
        if world()[1] > 1:
            dist.all_reduce(own)
        return dict(zip(UNITS, own, strict=True))

    @staticmethod
    def _share(batch: Any, unit: str, total: Tensor) -> Tensor:
        """This pass's share of the step: means of passes, so weighted, add up to the mean of the step."""
        share: Tensor = batch.units[unit] / total.clamp(min=1e-9)
        return share

    def _count(
        self, loss: Tensor, terms: Mapping[str, Tensor], notes: Mapping[str, Tensor], share: Any, batch: Any
    ) -> None:
        def add(name: str, value: Tensor | float) -> None:
            value = torch.as_tensor(value, dtype=torch.float32, device=self.engine.device).detach()
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value

        add("loss", loss)
        for name, term in terms.items():
            add(name, term.detach().float() * share[self.terms[name].unit])
        for name, note in notes.items():
            add(f"note.{name}", note)
            add(f"noted.{name}", 1.0)
        for unit in UNITS:
            add(unit, batch.units[unit])

    def _log(self, done: int, norm: float | None, pace: float, passes: list[Any]) -> dict[str, float]:
        value = self._summed()
        steps, self._logged = done - self._logged, done
        means = {name: value[name] / steps for name in ("loss", *self.terms)}
        values = {f"loss term {name!r}": means[name] for name in self.terms}
        self._finite(values | ({} if norm is None else {"norm of the gradient": norm}), done, passes)
        noted = [name.removeprefix("note.") for name in value if name.startswith("note.")]
        notes = {name: value[f"note.{name}"] / value[f"noted.{name}"] for name in noted}
        rates = {"lr": self.optim.lr * factor(done - 1, self.steps, self.optim), "steps_per_second": pace}
        line = {
            "step": done,
            **means,
            **notes,
            **{unit: value[unit] / steps for unit in UNITS},
            **({} if norm is None else {"norm": norm}),
            **rates,
        }
        if not world()[0]:
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")
        return line

    def _summed(self) -> dict[str, float]:
        """The sums since the last line, over all ranks; a rank may lack a note another has."""
        names = sorted(self.sums)
        if world()[1] > 1:
            every: list[list[str]] = [[] for _ in range(world()[1])]
            dist.all_gather_object(every, names)
            names = sorted(set().union(*every))
        none = torch.zeros((), device=self.engine.device)
        sums = torch.stack([self.sums.get(name, none) for name in names])
        if world()[1] > 1:
            dist.all_reduce(sums)
        self.sums.clear()
        return dict(zip(names, sums.tolist(), strict=True))

    @staticmethod
    def _finite(values: Mapping[str, float], done: int, passes: list[Any]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise StageError(
                    f"the {name} is {value} by step {done}",
                    at=f"samples {', '.join(passes[-1].ids[:4])}",
                    fix="a lower learning rate, or precision: fp32",
                )
