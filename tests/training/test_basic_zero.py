"""Objectives under DeepSpeed: two processes under every ZeRO stage log the losses of one, one of them without image."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from mmalign.data import Truth
from mmalign.labels import LabelSource
from mmalign.objectives import Objective
from mmalign.objectives.assignment import Assignment
from mmalign.objectives.basic import Direction, Distribution
from mmalign.objectives.caption_contrast import CaptionContrast
from mmalign.objectives.lm import NextToken
from mmalign.objectives.logit_lens import LogitLens
from mmalign.objectives.next_embedding import NextEmbedding
from mmalign.objectives.patch_words import PatchWords
from mmalign.objectives.reconstruction import Reconstruction
from mmalign.objectives.representation import Representation
from mmalign.objectives.visual_words import VisualWords
from mmalign.objectives.vocabulary_regression import VocabularyRegression
from mmalign.plan.recipe import EngineSettings as Settings
from mmalign.plan.recipe import Optim
from mmalign.training import engine
from mmalign.training import premise as premises
from mmalign.training.batches import BadSamples, Batches, Collate
from mmalign.training.events import Events
from mmalign.training.loop import Fit, Term
from mmalign.training.optim import groups
from mmalign.training.premise import Premise
from mmalign.vision.hf import HFVision
from mmalign.vlm.supervised import PassLabels
from tests import parts, ports
from tests.objectives.test_basic import Rows, batch_of, build

STEPS = 4
STAGES = {"0": 0, "1": 1, "2": 2, "3": 3, "3, all partitioned": 3}
# samples a pass; of one alone there is nothing to contrast its caption with
MICRO = {"basic": 1, "states": 2, "targets": 1}
TERMS = {
    "basic": {"lm": Term(1.0, "tokens"), "direction": Term(1.0), "distribution": Term(0.01)},
    "states": {"lm": Term(1.0, "tokens"), "next": Term(1.0), "lens": Term(0.1), "deep": Term(0.1), "words": Term(1.0),
               "captions": Term(1.0), "assigned": Term(0.1), "ahead": Term(0.1), "mixed": Term(0.1),
               "regressed": Term(0.1)},
    "targets": {"lm": Term(1.0, "tokens"), "viral": Term(0.5), "ross": Term(1.0), "vanilla": Term(1.0)},
}  # fmt: skip


class Labelled(Rows):
    """Words for the patches of all pictures but one."""

    def truth(self, reference, frame):
        (rows, columns) = frame.grid
        return Truth([() if reference == 0 else (("red", "blue", "star")[n % 3],) for n in range(rows * columns)])


class TruthLabels(LabelSource):
    """The data's words, each with the score 1."""

    needs = "truth"
    words = ["red", "blue", "star"]

    def given(self, truth):
        numbers = [self.words.index(words[0]) if words else -1 for words in truth]
        words_PK = torch.tensor(numbers)[:, None]
        return words_PK.clamp(min=0), (words_PK >= 0).float()


def objectives(case: str, folders: dict[str, Path]) -> dict[str, Objective]:
    if case == "basic":
        return {"lm": NextToken(), "direction": Direction(space="lens"), "distribution": Distribution()}
    if case == "targets":
        other = HFVision(str(folders["dinov2"]))  # of 3 x 3 patches, where the model's has 5 x 5
        ross = {"ross": Reconstruction(other, width=8), "vanilla": Reconstruction(other, "regression", width=8)}
        return {"lm": NextToken(), "viral": Representation(other, width=8), **ross}
    looking = {"next": NextEmbedding(), "lens": LogitLens(), "deep": LogitLens(1), "words": PatchWords()}
    said = {"captions": CaptionContrast(), "assigned": Assignment()}
    return {"lm": NextToken(), **looking, **said, **of_words()}


def of_words() -> dict[str, Objective]:
    """What holds a matrix of the whole vocabulary beside the head."""
    return {"ahead": VisualWords(), "mixed": VisualWords("embeddings"), "regressed": VocabularyRegression()}


def train(folders: dict[str, Path], place: Path, zero: int, case: str = "basic") -> None:
    """Adapter and language model, one of four samples without image; for BASIC the premise watched on the way."""
    place.mkdir(exist_ok=True)
    rank, ranks = engine.world()
    model, source = build(folders, "llama", **objectives(case, folders)), TruthLabels()
    model._labels = (PassLabels(model.vlm.word_embeddings(source.words), source),)
    with torch.no_grad():
        model.vlm.llm.vocabulary().mul_(30)  # as drawn all words are alike, and a divergence would be rounding alone
    model.freeze_all_but(["adapter", "llm"])
    model.train()
    vlm = model.vlm
    collate = Collate(
        Labelled(), vlm.llm.chat, vlm.vision, vlm.tokens, 200, BadSamples(0), source=source, grid=vlm.grid,
        encoders=model.encoders,
    )  # fmt: skip
    batches = Batches(collate, 4, 4, MICRO[case], 0, rank, ranks, workers=0)
    optim = Optim(lr=1e-2)
    given = groups(model.named_parameters(), optim)
    deepspeed = engine.Engine(model, given, optim, Settings(zero=zero), "fp32", MICRO[case], batches.passes)
    premises.SHARE = float("inf")  # a look takes longer than a step here
    watchers = []
    if case == "basic":
        watchers = [Premise(model, batch_of(model, [0]), None, place / "premise.jsonl", 2, STEPS, silent=rank > 0)]
    fit = Fit(
        deepspeed, lambda start: batches.run(start, STEPS), STEPS, optim, TERMS[case], place, Events(place, rank), 100,
        1, watchers=watchers,
    )  # fmt: skip
    fit.run()


def partitioned(config):
    def all_of_them(*args):
        ds_config = config(*args)
        ds_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return ds_config

    return all_of_them


def ranks(rank: int, port: int, folders: dict[str, Path], place: Path, case: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    for name, zero in STAGES.items():
        if name == "3, all partitioned":  # parameters this small are left whole, unless DeepSpeed is told otherwise
            engine.config = partitioned(engine.config)
        train(folders, place / name, zero, case)
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def lines(place: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in place.read_text().splitlines()]


@pytest.mark.parametrize("case", ["basic", *(pytest.param(c, marks=pytest.mark.slow) for c in ("states", "targets"))])
def test_two_processes_log_the_losses_of_one(tmp_path: Path, monkeypatch, case):
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    folders = {"clip": parts.clip(tmp_path / "clip"), "llama": parts.llm("llama", tmp_path / "llama")}
    folders["dinov2"] = parts.dinov2(tmp_path / "dinov2")
    train(folders, tmp_path / "one", 0, case)
    mp.spawn(ranks, (ports.free(), folders, tmp_path, case), nprocs=2)
    metrics = lines(tmp_path / "one" / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    for stage in STAGES:
        of_two = lines(tmp_path / stage / "metrics.jsonl")
        for name in ("loss", *TERMS[case], "images", "tokens"):
            one, two = ([line[name] for line in log] for log in (metrics, of_two))
            # of a sum of probabilities' products near 1, fp32 keeps 1e-7
            assert two == pytest.approx(one, rel=1e-5, abs=1e-7), (stage, name)
        if case == "basic":
            assert lines(tmp_path / stage / "premise.jsonl") == lines(tmp_path / "one" / "premise.jsonl")
    assert all(line[name] for line in metrics for name in TERMS[case])
