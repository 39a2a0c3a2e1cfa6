"""The contrast stage: an image in every record, and steps that are not finite."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from mmalign.data import Data, Record, Turn
from mmalign.errors import DataError, MMAlignError, StageError
from mmalign.pipeline import task
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.plan.check import check
from mmalign.plan.recipe import Optim
from mmalign.stages import contrast
from mmalign.stages.contrast import Contrastive, Reader
from mmalign.training.optim import factor


class Text(Data):
    def __len__(self):
        return 1

    def __getitem__(self, number):
        return Record("row-0", (Turn("user", "What?"), Turn("assistant", "red")))


def test_a_record_without_an_image_is_named():
    with pytest.raises(DataError, match="no image in row-0"):
        Reader(Text(), None, None).batch([0], seed=0)


STAGE = """\
name: pairs
seed: 5
model: {vision: toy-clip}
stages:
  pairs: {kind: contrast, data: {card: toy-pairs, args: {size: 32}}, optim: {lr: 1e-3, clip: 0}, batch: 8, steps: 4,
    precision: fp32, log_every: 1, engine: {zero: 0, workers: 0, save_every: 1}}
"""
BAD = 2  # the step, from 0, one of whose images is not a number


@pytest.fixture
def trained(here, monkeypatch):
    """trained(words ...): the folder of the stage, its results, the model before the first step, and the passes."""
    (here / "pairs.yaml").write_text(STAGE)
    batch, start = Reader.batch, Contrastive.__init__

    def run(*words):
        before, passes = [], []

        def spoilt(reader, numbers, seed):
            pairs = batch(reader, numbers, seed)
            if len(passes) == BAD:
                pairs.pixels_B3SS[3] = float("nan")
            passes.append(pairs)
            return pairs

        def kept(model, clip, pool):
            start(model, clip, pool)
            before.append(copy.deepcopy(model))

        monkeypatch.setattr(Reader, "batch", spoilt)
        monkeypatch.setattr(Contrastive, "__init__", kept)
        (node,) = graph.plan(compose.load("pairs.yaml", words), here / "runs")
        task.save(node)
        return node.folder, contrast.run(task.load(node.folder)), before[0], passes

    return run


def test_a_step_that_is_not_finite_ends_it_where_nothing_else_is_said(trained, here):
    with pytest.raises(StageError, match="the loss term 'contrast' is nan by step 3\n  at   samples ") as caught:
        trained()
    assert caught.value.fix.endswith("or on_nan: skip")
    (folder,) = here.glob("runs/contrast-*")
    assert not (folder / "weights").exists()


@pytest.mark.parametrize("zero", [0, *(pytest.param(zero, marks=pytest.mark.slow) for zero in (1, 2, 3))])
def test_a_step_that_is_not_finite_is_left_out(trained, zero):
    """The weights are AdamW's, which never sees the step, and the samples are written down."""
    folder, results, model, passes = trained("stages.pairs.on_nan=skip", f"stages.pairs.engine.zero={zero}")
    (line,) = [json.loads(line) for line in (folder / "nonfinite.jsonl").read_text().splitlines()]
    assert (line["step"], line["what"], line["samples"]) == (BAD + 1, "loss term 'contrast'", passes[BAD].ids)
    assert results["warnings"] == [f"1 of 4 steps were not finite and left out, see {folder.name}/nonfinite.jsonl"]
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 4]

    settings = Optim(lr=1e-3)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    for step, pairs in enumerate(passes):
        if step == BAD:
            continue
        adam.param_groups[0]["lr"] = 1e-3 * factor(step, 4, settings)
        terms, _ = model(pairs)
        terms["contrast"].backward()
        adam.step()
        adam.zero_grad()
        assert log[step - (step > BAD)]["contrast"] == pytest.approx(float(terms["contrast"].detach()), rel=1e-5)
    weights = load_file(folder / "weights" / "vision" / "model.safetensors")
    for name, value in model.clip.state_dict().items():
        assert torch.allclose(weights[name], value.reshape(weights[name].shape), atol=1e-5), name


def test_what_a_contrast_stage_cannot_do_is_refused(here):
    """Before anything is built: a setting has an effect, or is a mistake."""
    for setting, what in (("checkpointing: true", "recomputes nothing"), ("compile: true", "is not compiled")):
        (here / "pairs.yaml").write_text(STAGE)
        given = compose.load("pairs.yaml", [f"stages.pairs.engine={{{setting}}}"])
        with pytest.raises(MMAlignError, match=f"a stage of kind contrast {what}") as caught:
            check(given)
        assert caught.value.at.endswith(f"stages.pairs.engine.{setting.split(':')[0]}")
