"""A stage that trains the language model alone: from its card's weights, or from random ones."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmalign.errors import StageError
from mmalign.io import files
from mmalign.llms.causal import CausalLM
from mmalign.pipeline import task
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.stages import language

STAGE = """\
name: words
seed: 5
model: {llm: toy-llama}
stages:
  words: {kind: language, data: {card: toy-texts, args: {size: 16}}, optim: {lr: 0}, batch: 4, steps: 1,
    precision: fp32, engine: {zero: 0, workers: 0}}
"""


@pytest.fixture
def trained(here: Path):
    """trained(words ...): what the stage wrote, weights by name, and its metrics."""

    def run(*words: str, whole: bool = False):
        (here / "words.yaml").write_text(STAGE)
        (node,) = graph.plan(compose.load("words.yaml", words), here / "runs")
        task.save(node)
        results = language.run(task.load(node.folder))
        if whole:
            return results
        return load_file(node.folder / "weights" / "llm" / "model.safetensors"), results["metrics"]

    return run


def shipped():
    return load_file(files.path("pkg:mmalign.toyworld/llama/model.safetensors"))


def test_it_starts_from_the_weights_of_its_card(trained):
    """At a rate of 0 it ends where it started; a random model is nowhere near."""
    before = shipped()
    after, metrics = trained()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name].float(), before[name].float()) for name in before)
    fresh, random_metrics = trained("stages.words.from=config")
    assert not torch.equal(fresh["model.embed_tokens.weight"], before["model.embed_tokens.weight"].float())
    assert metrics["lm"] < 0.5 * random_metrics["lm"]


def test_steps_that_are_not_finite_end_it_or_are_left_out(trained, here):
    """The rate of the first step throws the weights out of all bounds."""
    wild = ["stages.words.optim={lr: 3e37, warmup: 0}", "stages.words.steps=4", "stages.words.engine.save_every=1"]
    with pytest.raises(StageError, match="or on_nan: skip"):
        trained(*wild)
    results = trained(*wild, "stages.words.on_nan=skip", whole=True)
    (folder,) = (here / "runs").glob("language-*")  # the setting goes on where the other stopped
    lines = [json.loads(line) for line in (folder / "nonfinite.jsonl").read_text().splitlines()]
    assert 1 <= len(lines) <= 3
    told = f"{len(lines)} of 4 steps were not finite and left out, see {folder.name}/nonfinite.jsonl"
    assert told in results["warnings"]
    assert told in (folder / "events.jsonl").read_text()


def test_random_weights_are_drawn_from_the_seed(trained):
    first, again, other = (trained("stages.words.from=config", f"seed={seed}")[0] for seed in (5, 5, 6))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_activations_are_made_again_where_the_stage_says_so(trained, monkeypatch):
    asked = []
    monkeypatch.setattr(CausalLM, "checkpoint_activations", lambda llm: asked.append(llm))
    trained()
    assert asked == []
    trained("stages.words.engine.checkpointing=true", "seed=6")
    assert len(asked) == 1


@pytest.mark.skipif(find_spec("peft") is None, reason="needs peft")
def test_low_rank_updates_are_merged_into_the_weights(trained):
    words = ("model.llm={card: toy-llama, args: {lora: 2}}", "stages.words.optim.lr=1e-2")
    after, before = trained(*words)[0], shipped()
    assert after.keys() == before.keys()
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"].float())
    moved = [name for name in before if not torch.equal(after[name], before[name].float())]
    assert moved
    assert all("_proj" in name for name in moved)
