"""BASIC under DeepSpeed: two processes under every ZeRO stage log the losses of one, also where one has no image."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from mmalign.objectives.basic import Direction, Distribution
from mmalign.objectives.lm import NextToken
from mmalign.plan.recipe import EngineSettings as Settings
from mmalign.plan.recipe import Optim
from mmalign.training import engine
from mmalign.training import premise as premises
from mmalign.training.batches import BadSamples, Batches, Collate
from mmalign.training.events import Events
from mmalign.training.loop import Fit, Term
from mmalign.training.optim import groups
from mmalign.training.premise import Premise
from tests import parts, ports
from tests.objectives.test_basic import Rows, batch_of, build

STEPS = 4
STAGES = {"0": 0, "1": 1, "2": 2, "3": 3, "3, all partitioned": 3}
TERMS = {"lm": Term(1.0, "tokens"), "direction": Term(1.0), "distribution": Term(0.01)}


def train(folders: dict[str, Path], place: Path, zero: int) -> None:
    """Adapter and language model, a sample a pass, one of the four without image; the premise watched on the way."""
    place.mkdir(exist_ok=True)
    rank, ranks = engine.world()
    model = build(folders, "llama", lm=NextToken(), direction=Direction(space="lens"), distribution=Distribution())
    with torch.no_grad():
        model.vlm.llm.vocabulary().mul_(30)  # as drawn all words are alike, and a divergence would be rounding alone
    model.freeze_all_but(["adapter", "llm"])
    model.train()
    collate = Collate(Rows(), model.vlm.llm.chat, model.vlm.vision, model.vlm.adapter.tokens, 200, BadSamples(0))
    batches = Batches(collate, 4, 4, 1, 0, rank, ranks, workers=0)
    optim = Optim(lr=1e-2)
    given = groups(model.named_parameters(), optim)
    deepspeed = engine.Engine(model, given, optim, Settings(zero=zero), "fp32", 1, batches.passes)
    premises.SHARE = float("inf")  # a look takes longer than a step here
    premise = Premise(model, batch_of(model, [0]), None, place / "premise.jsonl", 2, STEPS, silent=rank > 0)
    fit = Fit(
        deepspeed, lambda start: batches.run(start, STEPS), STEPS, optim, TERMS, place, Events(place, rank), 100, 1,
        watchers=[premise],
    )  # fmt: skip
    fit.run()


def partitioned(config):
    def all_of_them(*args):
        ds_config = config(*args)
        ds_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return ds_config

    return all_of_them


def ranks(rank: int, port: int, folders: dict[str, Path], place: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    for name, zero in STAGES.items():
        if name == "3, all partitioned":  # parameters this small are left whole, unless DeepSpeed is told otherwise
            engine.config = partitioned(engine.config)
        train(folders, place / name, zero)
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def lines(place: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in place.read_text().splitlines()]


def test_two_processes_log_the_losses_of_one(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    folders = {"clip": parts.clip(tmp_path / "clip"), "llama": parts.llm("llama", tmp_path / "llama")}
    train(folders, tmp_path / "one", 0)
    mp.spawn(ranks, (ports.free(), folders, tmp_path), nprocs=2)
    metrics, premise = lines(tmp_path / "one" / "metrics.jsonl"), lines(tmp_path / "one" / "premise.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    for stage in STAGES:
        of_two = lines(tmp_path / stage / "metrics.jsonl")
        for name in ("loss", *TERMS, "images", "tokens"):
            one, two = ([line[name] for line in log] for log in (metrics, of_two))
            # of a sum of probabilities' products near 1, fp32 keeps 1e-7
            assert two == pytest.approx(one, rel=1e-5, abs=1e-7), (stage, name)
        assert lines(tmp_path / stage / "premise.jsonl") == premise
