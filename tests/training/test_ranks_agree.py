"""Two and four processes log the losses of one, under every ZeRO stage, whatever each of their passes holds.

A step is a line of `MIXTURES`; what a pass holds depends on its number in the step alone, so that one process, which
runs all passes of a step, sees the same. Each process starts once and goes through all cases.
"""

from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist

from mmalign.adapters.mlp import MLP
from mmalign.data import Data, Record, Truth, Turn
from mmalign.errors import DataError
from mmalign.llms.causal import CausalLM
from mmalign.objectives import Objective, Words
from mmalign.objectives.basic import Direction, Distribution
from mmalign.objectives.caption_contrast import CaptionContrast
from mmalign.objectives.lm import NextToken
from mmalign.objectives.representation import Representation
from mmalign.objectives.sea import SEA
from mmalign.plan.recipe import EngineSettings as Settings
from mmalign.plan.recipe import Optim
from mmalign.training import engine
from mmalign.training.batches import BadSamples, Batches, Collate
from mmalign.training.events import Events
from mmalign.training.loop import Fit, Term
from mmalign.training.optim import groups
from mmalign.vision.hf import HFVision
from mmalign.vlm.batch import Batch
from mmalign.vlm.model import VLM
from mmalign.vlm.supervised import PassLabels, Supervised
from tests import parts
from tests.ranks import alive, begun, joined
from tests.training.test_basic_zero import TruthLabels, lines, partitioned
from tests.vlm.test_model import picture

pytestmark = pytest.mark.slow
MICRO = 2  # samples of a pass
# what the passes of a step hold, in turn: t text alone, 1, 2 and 3 pictures, u one without labels, x unreadable
MIXTURES = {
    "text on the first rank, pictures on the others": ["tt", "12", "11", "3t", "1t", "2u", "13", "11"],
    "all pictures on the other ranks": ["tt", "31", "tt", "2t", "tt", "11", "tt", "uu"],
    "no picture at all": ["tt"],
    "none, one, two, three": ["tt", "1t", "2t", "3t", "t1", "11", "22", "3u"],
    "one picture in the last pass": ["tt", "1t", "tt", "1t", "tt", "tt", "tt", "3t"],
    "unreadable rows": ["xx", "1x", "x2", "tx", "xx", "u1", "xx", "11"],
}
TERMS = {
    "lm": {},
    "sea": {"sea": 1.0},
    "basic": {"direction": 1.0, "distribution": 0.01},
    "others": {"contrasted": 1.0, "viral": 0.5},
}
PASSES = {(2, 1): 2, (2, 2): 4, (4, 1): 4, (4, 2): 8}  # {(ranks, accumulation): passes of a step}


class Case(NamedTuple):
    """A training; stage 3 partitions the smallest parameters, too."""

    terms: str
    passes: int
    packed: bool
    zero: int = 0

    @property
    def name(self) -> str:
        return f"{self.terms} of {self.passes} passes{', packed' * self.packed}, ZeRO {self.zero}"


class Mixed(Data):
    """Rows of a mixture, one step behind the other; texts of unlike length."""

    def __init__(self, passes: int) -> None:
        self.kinds = "".join(row[number % len(row)] for row in MIXTURES.values() for number in range(passes))

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, number: int) -> Record:
        kind = self.kinds[number]
        if kind == "x":
            raise DataError(f"row {number} is broken")
        images = tuple(number * 4 + n for n in range(1 if kind == "u" else 0 if kind == "t" else int(kind)))
        asked = "<image>\n" * len(images) + "What colour is the star? " * (1 + number % 3)
        said = "a large blue ring " * (1 + number % 4)
        return Record(f"row-{number}", (Turn("user", asked), Turn("assistant", said)), images)

    def image(self, reference):
        return picture(reference)

    def truth(self, reference, frame):
        rows, columns = frame.grid
        named = self.kinds[reference // 4] != "u"
        return Truth([(("red", "blue", "star")[n % 3],) if named else () for n in range(rows * columns)])


def model_of(folders: dict[str, Path], terms: str) -> Supervised:
    torch.manual_seed(0)
    vision, llm, source = HFVision(str(folders["clip"])), CausalLM(str(folders["llama"])), TruthLabels()
    made: dict[str, Objective] = {"lm": NextToken()}
    if terms in ("sea", "all"):
        made["sea"] = SEA()
    if terms in ("basic", "all"):
        made |= {"direction": Direction(), "distribution": Distribution()}
    if terms in ("others", "all"):
        other = HFVision(str(folders["dinov2"]))  # of 3 x 3 patches, where the model's has 5 x 5
        made |= {"contrasted": CaptionContrast(), "viral": Representation(other, width=8)}
    words = Words(source.words, torch.tensor([ids[:1] for ids in llm.chat.pieces(source.words)]), llm.embed)
    vlm = VLM(vision, MLP(vision.dim, llm.dim, vision.grid), llm)
    model = Supervised(vlm, made, PassLabels(words, source) if "sea" in made else None)
    model.prepare(engine.world()[1] > 1)
    with torch.no_grad():
        llm.vocabulary().mul_(30)  # as drawn all words are alike, and a divergence would be rounding alone
    model.freeze_all_but(["adapter", "llm"])
    return model.train()


@cache
def passes(places: tuple[tuple[str, Path], ...], count: int, packed: bool) -> list[list[Batch]]:
    """This rank's passes of every step, of so many over all ranks, with all that any objective needs."""
    model, source, data = model_of(dict(places), "all"), TruthLabels(), Mixed(count)
    vlm = model.vlm
    collate = Collate(
        data, vlm.llm.chat, vlm.vision, vlm.tokens, 250, BadSamples(len(data)), grid=vlm.grid, source=source,
        encoders=model.encoders, pack=packed,
    )  # fmt: skip
    order = lambda epoch: np.arange(len(data))  # noqa: E731
    batches = Batches(collate, len(data), count * MICRO, MICRO, 0, *engine.world(), workers=0, order=order)
    return list(batches.run(0, len(MIXTURES)))


def train(folders: dict[str, Path], place: Path, case: Case) -> dict[str, torch.Tensor]:
    """As many steps as there are mixtures; the weights of the adapter behind them."""
    place.mkdir(parents=True, exist_ok=True)
    rank, _ = engine.world()
    model, own = model_of(folders, case.terms), passes(tuple(folders.items()), case.passes, case.packed)
    optim, steps = Optim(lr=3e-3), len(MIXTURES)
    param_groups = groups(model.named_parameters(), optim)
    settings = Settings(zero=case.zero)
    deepspeed = engine.Engine(model, param_groups, optim, settings, "fp32", MICRO, len(own[0]))
    terms = {"lm": Term(1.0, "tokens"), **{name: Term(weight) for name, weight in TERMS[case.terms].items()}}
    Fit(deepspeed, lambda start: iter(own[start:]), steps, optim, terms, place, Events(place, rank), 100, 1).run()
    return deepspeed.weights("vlm.adapter")


def cases(ranks: int) -> list[Case]:
    passes = [PASSES[ranks, accumulation] for accumulation in (1, 2)]
    return [Case(*of) for of in product(TERMS, passes, (False, True), range(4))]


def rank_of(rank: int, folders: dict[str, Path], place: Path, ranks: int) -> None:
    engine.config = partitioned(engine.config)
    for case in cases(ranks):
        weights = train(folders, place / case.name, case)
        torch.save(weights, place / case.name / f"{rank}.pt")
        dist.barrier()
        alive(place)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("parts")
    made = {"clip": parts.clip(place / "clip"), "llama": parts.llm("llama", place / "llama")}
    return made | {"dinov2": parts.dinov2(place / "dinov2")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, folders) -> dict[Case, tuple[list[dict[str, float]], dict[str, torch.Tensor]]]:
    """(log, weights) of one process, for each case of ZeRO 0."""
    place, logs = tmp_path_factory.mktemp("alone"), {}
    for of in product(TERMS, sorted(set(PASSES.values())), (False, True)):
        case = Case(*of)
        weights = train(folders, place / case.name, case)
        logs[case] = lines(place / case.name / "metrics.jsonl"), weights
    return logs


@pytest.mark.parametrize("ranks", [2, 4])
def test_many_processes_log_the_losses_of_one(tmp_path, folders, alone, ranks):
    joined(begun(ranks, rank_of, tmp_path, folders, tmp_path, ranks), 300, tmp_path)
    worst: dict[str, float] = {}  # relative difference by name
    for case in cases(ranks):
        one, weights = alone[case._replace(zero=0)]
        many = lines(tmp_path / case.name / "metrics.jsonl")
        assert len(many) == len(one) == len(MIXTURES)
        for name in ("loss", "lm", *TERMS[case.terms], "images", "tokens", "samples", "norm"):
            of_one, of_many = ([line[name] for line in log] for log in (one, many))
            assert of_many == pytest.approx(of_one, rel=1e-5, abs=1e-7), (case.name, name)
            apart = [abs(a - b) / a for a, b in zip(of_one, of_many, strict=True) if a > 1e-3]
            worst[name] = max(worst.get(name, 0.0), *apart)
        first, *others = (torch.load(tmp_path / case.name / f"{rank}.pt") for rank in range(ranks))
        for name, value in first.items():
            assert all(torch.equal(other[name], value) for other in others), (case.name, name)
            assert torch.allclose(value, weights[name], atol=1e-5), (case.name, name)
    print(f"{ranks} ranks, {len(cases(ranks))} cases:", {name: f"{value:.1e}" for name, value in worst.items()})


def test_the_mixtures_are_what_they_say(alone):
    for case, (log, _) in alone.items():
        images = [line["images"] for line in log]
        assert images[2] == 0
        assert all(images[:2] + images[3:])
        for name in TERMS[case.terms]:
            assert any(line[name] for line in log), (case.name, name)
