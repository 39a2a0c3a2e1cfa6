"""ZeRO-3 where ranks see unlike passes: no image, no label, no usable sample; all wait in the same modules.

A module that one rank calls and another does not is a collective that does not match: the run hangs or dies.
"""

import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from mmalign.adapters.mlp import MLP
from mmalign.errors import DataError
from mmalign.llms.causal import CausalLM
from mmalign.objectives import Words
from mmalign.objectives.assignment import Assignment
from mmalign.objectives.caption_contrast import CaptionContrast
from mmalign.objectives.lm import NextToken
from mmalign.objectives.logit_lens import LogitLens
from mmalign.objectives.next_embedding import NextEmbedding
from mmalign.objectives.patch_words import PatchWords
from mmalign.objectives.reconstruction import Reconstruction
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
from mmalign.vlm.model import VLM
from mmalign.vlm.supervised import PassLabels, Supervised
from tests import parts, ports
from tests.ranks import joined
from tests.training.test_basic_zero import Labelled, TruthLabels, lines, of_words, partitioned

STEPS = 3
TRAINS = {"adapter": ["adapter"], "both": ["adapter", "llm"]}
TERMS = {
    "lm": Term(1.0, "tokens"),
    **{
        name: Term(1.0)
        for name in (
            "sea",
            "next",
            "lens",
            "deep",
            "words",
            "captions",
            "assigned",
            "viral",
            "ross",
            "vanilla",
            *of_words(),
        )
    },
}


class Uneven(Labelled):
    """An image without labels, no image, two images with labels, and a row nobody can read."""

    def __getitem__(self, number):
        if number == 3:
            raise DataError("row 3 is broken")
        return super().__getitem__(number)


def train(folders: dict[str, Path], place: Path, zero: int, trains: list[str]) -> None:
    """A sample a pass, two passes of a step on each of two ranks."""
    place.mkdir(exist_ok=True)
    rank, ranks = engine.world()
    torch.manual_seed(0)
    eye, mouth, source = HFVision(str(folders["clip"])), CausalLM(str(folders["llama"])), TruthLabels()
    pieces = mouth.chat.pieces(source.words)
    words = Words(source.words, torch.tensor([ids[:1] for ids in pieces]), mouth.embed)
    looking = {"next": NextEmbedding(), "lens": LogitLens(), "deep": LogitLens(1), "words": PatchWords()}
    said = {"captions": CaptionContrast(), "assigned": Assignment()}
    objectives = {"lm": NextToken(), "sea": SEA(), **looking, **said, **of_words()}
    other = HFVision(str(folders["dinov2"]))  # of 3 x 3 patches, where the model's has 5 x 5
    objectives |= {"viral": Representation(other, width=8), "ross": Reconstruction(other, width=8)}
    objectives["vanilla"] = Reconstruction(other, "regression", width=8)
    vlm = VLM(eye, MLP(eye.dim, mouth.dim, eye.grid), mouth)
    model = Supervised(vlm, objectives, PassLabels(words, source))
    model.prepare(ranks > 1)
    model.freeze_all_but(trains)
    model.train()
    collate = Collate(
        Uneven(), mouth.chat, eye, vlm.tokens, 200, BadSamples(9), source=source, grid=eye.grid,
        encoders=model.encoders,
    )  # fmt: skip
    batches = Batches(collate, 4, 4, 1, 0, rank, ranks, workers=0)
    optim = Optim(lr=1e-2)
    param_groups = groups(model.named_parameters(), optim)
    deepspeed = engine.Engine(model, param_groups, optim, Settings(zero=zero), "fp32", 1, batches.passes)
    steps = lambda start: batches.run(start, STEPS)  # noqa: E731
    Fit(deepspeed, steps, STEPS, optim, TERMS, place, Events(place, rank), 100, 1).run()


def ranks(rank: int, port: int, folders: dict[str, Path], place: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    engine.config = partitioned(engine.config)
    for name, trains in TRAINS.items():
        train(folders, place / f"{name}-two", 3, trains)
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_unlike_ranks_log_the_losses_of_one(tmp_path: Path):
    folders = {"clip": parts.clip(tmp_path / "clip"), "llama": parts.llm("llama", tmp_path / "llama")}
    folders["dinov2"] = parts.dinov2(tmp_path / "dinov2")
    both = mp.spawn(ranks, (ports.free(), folders, tmp_path), nprocs=2, join=False)
    joined(both)
    for name, trains in TRAINS.items():
        train(folders, tmp_path / f"{name}-one", 0, trains)
        one, two = (lines(tmp_path / f"{name}-{ranks_}" / "metrics.jsonl") for ranks_ in ("one", "two"))
        assert len(one) == STEPS
        for key in ("loss", *TERMS, "images", "tokens"):
            assert [line[key] for line in two] == pytest.approx([line[key] for line in one], rel=1e-5), (name, key)
