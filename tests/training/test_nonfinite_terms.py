"""A number that is none in any term of the loss, in a gradient alone, or in a picture: one process and two, under every
ZeRO stage, name it at its step; leaving it out, they agree, and have the weights of a run that never saw the step."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist

from mmalign.errors import StageError
from mmalign.plan.recipe import EngineSettings as Settings
from mmalign.plan.recipe import Optim
from mmalign.training import engine
from mmalign.training.events import Events
from mmalign.training.loop import Fit, Term
from mmalign.training.optim import factor, groups
from mmalign.vlm.batch import Batch
from mmalign.vlm.supervised import Supervised
from tests.ranks import alive, begun, joined
from tests.training.test_basic_zero import lines, partitioned
from tests.training.test_ranks_agree import MICRO, TERMS, folders, model_of, passes

pytestmark = pytest.mark.slow
__all__ = ["folders"]
STEPS, PASSES = 5, 2
BAD = 3  # the step, from 0: its first pass has no picture, its second, the other rank's where there are two, has one
ROW = f"row-{(BAD * PASSES + 1) * MICRO}"
WEIGHTS = {"lm": 1.0} | TERMS["sea"] | TERMS["basic"] | TERMS["others"]
UNITS = {"lm": "tokens"}
# {what is not a number: what is named}; inf as a constant has a gradient that is finite
KINDS = {name: f"loss term {name!r}" for name in WEIGHTS} | {
    "constant": "loss term 'sea'",
    "gradient": "norm of the gradient",
    "endless gradient": "norm of the gradient",
    "input": "loss term 'lm'",
}


class Poison(torch.autograd.Function):
    """A number as it is, whose gradient is another."""

    @staticmethod
    def forward(ctx, value, gradient):
        ctx.gradient = gradient
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.full_like(gradient, ctx.gradient), None


class Broken(Supervised):
    """What is not a number in the pass that has the row."""

    kind = ""

    def forward(self, batch):
        if ROW not in batch.ids:
            return super().forward(batch)
        if self.kind == "input":
            batch = replace(batch, pixels_B3SS=batch.pixels_B3SS * float("nan"))
        terms, notes = super().forward(batch)
        if self.kind in terms:
            terms[self.kind] = terms[self.kind] * float("nan")
        if self.kind == "constant":
            terms["sea"] = terms["sea"] + float("inf")
        if self.kind.endswith("gradient"):
            terms["lm"] = Poison.apply(terms["lm"], float("inf" if self.kind.startswith("endless") else "nan"))
        return terms, notes


class Case(NamedTuple):
    kind: str
    zero: int
    precision: str = "fp32"
    skip: bool = True

    @property
    def name(self) -> str:
        return f"{self.kind}, ZeRO {self.zero}, {self.precision}{', skip' * self.skip}"


CASES = [
    *(Case(kind, zero) for kind, zero in product(KINDS, range(4))),
    *(Case(kind, zero, "bf16") for kind, zero in product(("direction", "gradient", "constant"), range(4))),
    *(Case(kind, zero, skip=False) for kind, zero in product(("viral", "gradient"), range(4))),
]


def made(folders: dict[str, Path], precision: str = "fp32") -> tuple[Supervised, list[list[Batch]]]:
    model = model_of(folders, "all").to(torch.bfloat16 if precision == "bf16" else torch.float32)
    return model, passes(tuple(folders.items()), PASSES, False)[:STEPS]


def train(folders: dict[str, Path], place: Path, case: Case) -> dict[str, torch.Tensor]:
    """Weights of the adapter at the end; where the run ends with an error, that stands in error.txt."""
    place.mkdir(parents=True, exist_ok=True)
    rank, _ = engine.world()
    model, own = made(folders, case.precision)
    model.__class__, model.kind = Broken, case.kind
    optim = Optim(lr=3e-3)
    param_groups = groups(model.named_parameters(), optim)
    deepspeed = engine.Engine(model, param_groups, optim, Settings(zero=case.zero), case.precision, MICRO, len(own[0]))
    terms = {name: Term(weight, UNITS.get(name, "images")) for name, weight in WEIGHTS.items()}
    fit = Fit(
        deepspeed,
        lambda start: iter(own[start:]),
        STEPS,
        optim,
        terms,
        place,
        Events(place, rank),
        100,
        1,
        skip=case.skip,
    )
    try:
        fit.run()
        assert fit.skipped == 1
    except StageError as err:
        (place / f"error-{rank}.txt").write_text(str(err))
    return deepspeed.weights("vlm.adapter")


def by_hand(folders: dict[str, Path]) -> dict[str, torch.Tensor]:
    """AdamW that never sees the step, whose rate goes on as if it had."""
    (model, steps), optim = made(folders), Optim(lr=3e-3)
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0.0)
    for step, own in enumerate(steps):
        if step == BAD:
            continue
        total = {unit: max(1e-9, sum(batch.units[unit] for batch in own)) for unit in ("tokens", "images")}
        for batch in own:
            torch.manual_seed(batch.seed)
            terms, _ = model(batch)
            share = {unit: batch.units[unit] / total[unit] for unit in total}
            sum(WEIGHTS[name] * share[UNITS.get(name, "images")] * value for name, value in terms.items()).backward()
        torch.nn.utils.clip_grad_norm_(trained, optim.clip)
        adam.param_groups[0]["lr"] = 3e-3 * factor(step, STEPS, optim)
        adam.step()
        adam.zero_grad()
    return model.vlm.adapter.state_dict()


def rank_of(rank: int, folders: dict[str, Path], place: Path) -> None:
    engine.config = partitioned(engine.config)
    for case in CASES:
        weights = train(folders, place / case.name, case)
        torch.save(weights, place / case.name / f"{rank}.pt")
        if dist.is_initialized():
            dist.barrier()
        alive(place)


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_is_not_a_number_is_named_and_left_out(tmp_path, folders, ranks):
    joined(begun(ranks, rank_of, tmp_path, folders, tmp_path), 300, tmp_path)
    expected, bf16 = by_hand(folders), {}
    for case in CASES:
        place = tmp_path / case.name
        first, *others = (torch.load(place / f"{rank}.pt") for rank in range(ranks))
        for name, value in first.items():
            assert all(torch.equal(other[name], value) for other in others), (case.name, name)
            assert value.isfinite().all(), (case.name, name)
        (line,) = lines(place / "nonfinite.jsonl")
        assert (line["step"], line["what"]) == (BAD + 1, KINDS[case.kind]), case.name
        assert line["samples"] == [f"row-{number}" for number in range(BAD * 4, BAD * 4 + 4)], case.name
        if not case.skip:
            for own in ((place / f"error-{rank}.txt").read_text() for rank in range(ranks)):
                assert own.startswith(f"the {KINDS[case.kind]} is {line['value']} by step {BAD + 1}\n"), case.name
                assert "on_nan: skip" in own
            continue
        assert [row["step"] for row in lines(place / "metrics.jsonl")] == [1, 2, 3, 5], case.name
        told = [row.get("say", "") for row in map(json.loads, (place / "events.jsonl").read_text().splitlines())]
        assert f"the {KINDS[case.kind]} is {line['value']} by step 4: left out, see nonfinite.jsonl" in told
        for name, value in first.items():
            if case.precision == "fp32":
                assert torch.allclose(value, expected[name], atol=1e-6), (case.name, name)
            else:  # whatever it was that was left out
                assert torch.equal(value, bf16.setdefault((case.zero, name), value)), (case.name, name)
