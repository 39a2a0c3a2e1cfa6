"""A number that is none on one of two ranks: both leave the step out, under every ZeRO stage, and go on."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from mmalign.plan.recipe import EngineSettings as Settings
from mmalign.plan.recipe import Optim
from mmalign.training.engine import Engine
from mmalign.training.events import Events
from mmalign.training.loop import Fit, Term
from mmalign.training.optim import groups
from tests import ports
from tests.ranks import joined
from tests.training.test_loop import Net, by_hand_without, spoilt

pytestmark = pytest.mark.slow
STEPS, BAD = 6, {2, 3}  # the pass that is spoilt is the second rank's


def rank_of_two(rank: int, port: int, place: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    optim, terms = Optim(lr=1e-2, clip=0.0), {"lm": Term(1.0, "tokens"), "sea": Term(0.5, "images")}
    for zero in range(4):
        folder, net, make = place / str(zero), Net(), spoilt(BAD)
        folder.mkdir(exist_ok=True)
        engine = Engine(net, groups(net.named_parameters(), optim), optim, Settings(zero=zero), "fp32", 1, 2)
        batches = lambda start, make=make: (make(step)[rank::2] for step in range(start, STEPS))  # noqa: E731
        fit = Fit(engine, batches, STEPS, optim, terms, folder, Events(folder, rank), 100, 1, skip=True)
        fit.run()
        assert fit.skipped == len(BAD)
        weights = engine.weights("adapter")
        torch.save(weights, folder / f"{rank}.pt")
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_a_step_that_is_not_finite_on_one_rank_is_left_out_on_both(tmp_path):
    both = mp.spawn(rank_of_two, (ports.free(), tmp_path), nprocs=2, join=False)
    joined(both)
    expected, lm_of = by_hand_without(BAD, STEPS)
    for zero in range(4):
        one, two = (torch.load(tmp_path / str(zero) / f"{rank}.pt") for rank in (0, 1))
        assert torch.equal(one["weight"], two["weight"])
        assert torch.allclose(one["weight"], expected.adapter.weight, atol=1e-6)
        log = [json.loads(line) for line in (tmp_path / str(zero) / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in log] == [1, 2, 5, 6]
        assert [line["lm"] for line in log] == pytest.approx([lm_of[line["step"]] for line in log], rel=1e-5)
        told = [json.loads(line) for line in (tmp_path / str(zero) / "nonfinite.jsonl").read_text().splitlines()]
        assert [(line["step"], line["what"], len(line["samples"])) for line in told] == [
            (3, "loss term 'lm'", 4),
            (4, "loss term 'lm'", 4),
        ]
