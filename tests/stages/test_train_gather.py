"""SEA on two processes under every ZeRO stage: one process's losses; gathered, those of the joined batch by hand."""

import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch.nn.functional import normalize

from mmalign.objectives.contrast import info_nce, similarities
from mmalign.objectives.sea import SEA, draw, once_each
from mmalign.pipeline import build, task
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.plan.recipe import Train
from mmalign.stages import label, supply, train
from mmalign.training import engine, optim
from mmalign.training.events import Events
from mmalign.vlm.batch import Batch
from mmalign.vlm.supervised import Supervised
from tests import ports
from tests.conftest import TINY
from tests.training.test_basic_zero import partitioned

STEPS = 2
SHORT = ["stages.tune=~", "stages.score=~", "stages.report=~"]
LABEL = [*SHORT, "stages.align=~"]
# the language model learns too, so that its table of embeddings is partitioned, moved, and gathered again
WORDS = [
    *SHORT, "stages.label=~", "stages.align.reads=~", "stages.align.labels={source: toy-words, keep: 3}",
    "stages.align.trains=[adapter, llm]", "stages.align.objectives={lm: 1.0, sea: {weight: 0.5}}",
    f"stages.align.steps={STEPS}", "stages.align.engine.save_every=100", "stages.align.evaluate_every=1",
    "stages.align.evaluate=[{card: toy-pope, args: {images: 2}}, {card: toy-perplexity, args: {texts: 4}}]",
]  # fmt: skip
GATHERED = [*WORDS, "stages.align.objectives.sea.args={gather: true}"]
ZERO = {"plain": [0, 3], "gathered": [0, 1, 2, 3]}


def planned(folder: Path, runs: str, words: list[str], zero: int) -> list[graph.Node]:
    (folder / "tiny.yaml").write_text(TINY)
    more = [] if words == LABEL else [f"stages.align.engine.zero={zero}"]
    return graph.plan(compose.load(folder / "tiny.yaml", [*words, *more]), folder / runs)


def saved(nodes: list[graph.Node]) -> list[Path]:
    for node in nodes:
        task.save(node)
    return [node.folder for node in nodes]


def trace(folder: Path) -> dict[str, list[float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {key: [row[key] for row in rows] for key in ("loss", "lm", "sea", "pairs")}


def _rank(rank: int, port: int, folders: list[Path]) -> None:
    """One of two ranks: labels and trains in one folder after the other."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    plain = engine.config
    for folder in folders:
        if engines_zero(folder) == 3:  # parameters this small are left whole, unless DeepSpeed is told otherwise
            engine.config = partitioned(plain)
        _stage(rank, folder)
        engine.config = plain
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def engines_zero(folder: Path) -> int:
    settings = getattr(task.load(folder).stage, "engine", None)
    return settings.zero if settings else 0


def _stage(_: int, folder: Path) -> None:
    given = task.load(folder)
    (train if isinstance(given.stage, Train) else label).run(given)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """What two processes made: {labels: a label stage; plain, gathered: align stages under ZERO}."""
    folder = tmp_path_factory.mktemp("two")
    os.environ["MMALIGN_CACHE"] = str(folder / "cache")
    found = {"labels": saved(planned(folder, "two", LABEL, 0))}
    for name, words in (("plain", WORDS), ("gathered", GATHERED)):
        found[name] = [saved(planned(folder, f"{name}-{zero}", words, zero))[0] for zero in ZERO[name]]
    mp.spawn(_rank, (ports.free(), [place for places in found.values() for place in places]), nprocs=2)
    return found


def alone(folder: Path, words: list[str]) -> Path:
    """The same on one process without ZeRO: a new one, for what ZeRO-3 changes in a process, it changes for good."""
    (made,) = saved(planned(folder, "alone", words, 0))
    mp.spawn(_stage, (made,))
    return made


def test_two_ranks_write_the_store_of_one(two):
    stores = [two["labels"][0], alone(two["labels"][0].parents[1], LABEL)]
    found, want = ({place.name: place.read_bytes() for place in (one / "labels").iterdir()} for one in stores)
    assert len(want) == 3 + 2 * 3  # header, words, index; three shards
    assert found == want


@pytest.fixture(scope="module")
def one(two: dict[str, list[Path]]) -> dict[str, list[float]]:
    two["one"] = [alone(two["plain"][0].parents[1], WORDS)]
    return trace(two["one"][0])


@pytest.mark.parametrize("zero", ZERO["plain"])
def test_two_processes_train_with_sea_as_one_does(two, one, zero):
    found = trace(two["plain"][ZERO["plain"].index(zero)])
    assert len(found["sea"]) == STEPS
    for key in one:
        assert found[key] == pytest.approx(one[key], rel=1e-5), key


@pytest.mark.parametrize("zero", ZERO["plain"])
def test_two_processes_evaluate_on_the_way_as_one_does(two, one, zero):
    """Written once, also where the weights are divided among them."""
    want, found = (
        [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
        for folder in (two["one"][0], two["plain"][ZERO["plain"].index(zero)])
    )
    assert [line["step"] for line in found] == [line["step"] for line in want] == [0, 1, 2]
    for alone_, both in zip(want, found, strict=True):
        assert both["scores"]["toy-pope"] == alone_["scores"]["toy-pope"]
        assert both["scores"]["toy-perplexity"] == pytest.approx(alone_["scores"]["toy-perplexity"], rel=1e-4)


@pytest.mark.parametrize("zero", ZERO["gathered"])
def test_gathered_pairs_train_as_the_joined_batch_by_hand(two, by_hand, zero):
    found = trace(two["gathered"][zero])
    for key in by_hand:
        assert found[key] == pytest.approx(by_hand[key], rel=1e-5), key


@pytest.fixture(scope="module")
def by_hand(two: dict[str, list[Path]]) -> dict[str, list[float]]:
    """The gathered training in plain PyTorch: a step's two passes, whose pairs are put together before the contrast."""
    given = task.load(two["gathered"][0])
    stage, events = given.stage, Events(given.folder)
    assert isinstance(stage, Train)
    vlm, data = build.vlm(given), build.data(given.cards["data"])
    labels = supply.supply(given, stage, vlm, data, events)
    collate = train._collate(given, stage, vlm, data, labels)
    model = train._supervised(given, stage, vlm, labels, distributed=False)
    batches = train.Batches(collate, len(data), stage.batch, stage.micro_batch, given.seed, workers=0)
    train._probe(model, collate)
    groups = optim.groups(model.named_parameters(), stage.optim)
    adam = optim.optimizer(groups, stage.optim)
    made: dict[str, list[float]] = {"loss": [], "lm": [], "sea": []}
    for number, passes in enumerate(islice(batches.run(0, STEPS), STEPS)):
        lm, sea = together(model, passes)
        loss = lm + 0.5 * sea
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group.params], stage.optim.clip)
        for group, settings in zip(groups, adam.param_groups, strict=True):
            settings["lr"] = group.lr * optim.factor(number, STEPS, stage.optim)
        adam.step()
        adam.zero_grad()
        for key, value in (("loss", loss), ("lm", lm), ("sea", sea)):
            made[key].append(value.item())
    return made


def together(model: Supervised, passes: list[Batch]) -> tuple[Any, Any]:
    """(lm over all tokens, SEA over the pairs of both passes, a word once, by the first rank's stream)."""
    sea: SEA = model.objectives["sea"]  # type: ignore[assignment]
    seen: list[Any] = []
    sea.forward = lambda step: seen.append(step) or step.visual_BPD.sum() * 0  # type: ignore[method-assign]
    tokens = torch.tensor([batch.units["tokens"] for batch in passes])
    lm = sum(model(batch)[0]["lm"] * share for batch, share in zip(passes, tokens / tokens.sum(), strict=True))
    visual, text, words = [], [], []
    for step in seen:
        patch_N, word_N = draw(step.labels, len(step.visual_BPD), step.grid, sea.window, step.random)
        visual.append(normalize(step.visual_BPD.flatten(0, 1)[patch_N].float(), dim=-1))
        text.append(normalize(step.words.embeddings(word_N), dim=-1))
        words.append(word_N)
    shared = int(torch.randint(1 << 62, (1,), generator=seen[0].random))
    kept = once_each(torch.cat(words), torch.Generator().manual_seed(shared))
    return lm, info_nce(similarities(torch.cat(visual)[kept], torch.cat(text)[kept], sea.log_scale.exp()))


def test_gathering_contrasts_more_pairs_than_a_device_has(two):
    plain, gathered = trace(two["plain"][0]), trace(two["gathered"][0])
    assert all(more > less for more, less in zip(gathered["pairs"], plain["pairs"], strict=True))
