"""Supervision by two processes: terms are logged, and weights trained, as by one; under DDP, ZeRO 2 and 3, and FSDP."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import mmalign
from mmalign.integrations import declared
from mmalign.plan.recipe import EngineSettings, Optim
from mmalign.training import engine
from mmalign.training.optim import groups
from tests import ports
from tests.integrations import families
from tests.integrations.test_declared import ROWS
from tests.integrations.test_supervising import BASIC, labelled
from tests.integrations.test_supervising_trainer import Rows, no_rank, train
from tests.training.test_basic_zero import partitioned

__all__ = ["no_rank"]
FAMILY = "qwen2_5_vl"
EVEN = [("what is this ?", [size]) for size in ((40, 30), (20, 50), (33, 33), (40, 16))]  # as many tokens to train
STEPS = 3


def supervised():
    model, processor = families.make(FAMILY)
    return mmalign.supervise(model.train(), processor, BASIC), processor


def by_trainer(place: Path, name: str, rows: list, lr: float, batch: int, accumulate: int) -> None:
    """Four rows a step, whoever reads them."""
    model, processor = supervised()
    more = {"gradient_accumulation_steps": accumulate, "per_device_train_batch_size": batch, "learning_rate": lr}
    if dist.is_available() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        more["ddp_backend"] = "gloo"
    trainer = train(model, processor, place / "out", Rows(rows, 4), STEPS, **more)  # a step is all of them
    if trainer.is_world_process_zero():
        (place / f"{name}.json").write_text(json.dumps(trainer.state.log_history))


def own_rows(processor, model) -> dict[str, torch.Tensor]:
    rank, ranks = engine.world()
    return labelled(model, processor, EVEN[rank::ranks])


def averaged(terms: dict[str, torch.Tensor]) -> dict[str, float]:
    """Over ranks."""
    _, ranks = engine.world()
    values = torch.stack([term.detach() for term in terms.values()])
    if ranks > 1:
        dist.all_reduce(values)
    return dict(zip(terms, (values / ranks).tolist(), strict=True))


def by_zero(place: Path, name: str, zero: int) -> None:
    model, processor = supervised()
    inputs, optim = own_rows(processor, model._model[0]), Optim(lr=1e-3)
    parameters = groups(model.named_parameters(), optim)
    deepspeed = engine.Engine(model, parameters, optim, EngineSettings(zero=zero), "fp32", 1, 1)
    lines = []
    for _ in range(STEPS):
        terms = deepspeed.engine(**inputs)
        deepspeed.backward(terms["loss"])
        deepspeed.step(1.0, True)
        lines.append(averaged(terms))
    if engine.world()[0] == 0:
        (place / f"{name}.json").write_text(json.dumps(lines))


def by_fsdp(place: Path, name: str) -> None:
    model, processor = supervised()
    inputs = own_rows(processor, model._model[0])
    if engine.world()[1] > 1:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        for layer in declared.parts(model._model[0], processor).layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    lines = []
    for _ in range(STEPS):
        terms = model(**inputs)
        terms["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        lines.append(averaged(terms))
    if engine.world()[0] == 0:
        (place / f"{name}.json").write_text(json.dumps(lines))


def ranks(rank: int, port: int, place: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    by_trainer(place, "uneven-two", ROWS, 0.0, 1, 2)
    by_trainer(place, "even-two", EVEN, 1e-3, 1, 2)
    by_fsdp(place, "fsdp-two")
    by_zero(place, "zero2-two", 2)
    engine.config = partitioned(engine.config)  # parameters this small are left whole, unless DeepSpeed is told so
    by_zero(place, "zero3-two", 3)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """What two processes log; each also by one."""
    place = tmp_path_factory.mktemp("ranks")
    mp.spawn(ranks, (ports.free(), place), nprocs=2)
    return place


def of(place: Path, name: str) -> list[dict[str, float]]:
    return [line for line in json.loads((place / f"{name}.json").read_text()) if "loss" in line]


@pytest.mark.parametrize(("name", "rows", "lr"), [("uneven", ROWS, 0.0), ("even", EVEN, 1e-3)])
def test_the_trainer_logs_what_one_process_logs(logs, name, rows, lr):
    """Terms once a step, over ranks and passes, by their tokens and images; the loss is a mean of passes."""
    by_trainer(logs, f"{name}-one", rows, lr, 4, 1)
    one, two = of(logs, f"{name}-one"), of(logs, f"{name}-two")
    assert [line["step"] for line in two] == [line["step"] for line in one] == [1, 2, 3]
    for ours, theirs in zip(two, one, strict=True):
        for term in ("lm", *BASIC, *(["loss"] if name == "even" else [])):
            assert ours[term] == pytest.approx(theirs[term], rel=1e-4), term


@pytest.mark.parametrize("name", ["zero2", "zero3", "fsdp"])
def test_divided_weights_are_trained_as_whole_ones(logs, name):
    if name == "fsdp":
        by_fsdp(logs, "fsdp-one")
    else:
        by_zero(logs, f"{name}-one", 0)
    one, two = of(logs, f"{name}-one"), of(logs, f"{name}-two")
    assert one[0]["loss"] > one[-1]["loss"]
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
