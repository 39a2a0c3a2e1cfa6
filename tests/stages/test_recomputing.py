"""`engine.checkpointing`: decided by the devices' memory, told in the log, and without effect on what is learnt."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmalign.errors import CardError
from mmalign.pipeline import task
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.stages import recomputing, train

SMALL = [
    "stages.label=~", "stages.tune=~", "stages.score=~", "stages.report=~", "stages.align.reads=~",
    "stages.align.objectives={lm: 1.0, sea: ~, basic-direction: 0.1}", "stages.align.trains=[vision, adapter, llm]",
    "stages.align.steps=2", "stages.align.batch=4", "stages.align.micro_batch=2", "stages.align.precision=fp32",
    "stages.align.engine.workers=0", "stages.align.log_every=1",
]  # fmt: skip


@pytest.fixture
def trained(tmp_path: Path):
    """trained(checkpointing): (weights, lines of the log, what was said)."""

    def run(word):
        words = [*SMALL, f"stages.align.engine.checkpointing={word}"]
        (node,) = graph.plan(compose.load("quickstart", words), tmp_path / word)
        task.save(node)
        train.run(task.load(node.folder))
        weights = {
            f"{path.parent.name}/{name}": value
            for path in sorted((node.folder / "weights").rglob("*.safetensors"))
            for name, value in load_file(path).items()
        }
        lines = [json.loads(line) for line in (node.folder / "metrics.jsonl").read_text().splitlines()]
        said = [json.loads(line).get("say", "") for line in (node.folder / "events.jsonl").read_text().splitlines()]
        return weights, lines, [one for one in said if one.startswith("activations")]

    return run


def test_what_is_learnt_is_the_same(trained, monkeypatch):
    """True, false and both outcomes of auto, in fp32 and on one CPU: to the bit."""
    kept, kept_lines, silent = trained("false")
    assert not silent
    monkeypatch.setattr(recomputing, "memory", lambda: 1e-3)
    results = [trained("true"), trained("auto")]
    assert results[0][2] == []
    assert results[1][2][0].startswith("activations are recomputed: with them the stage takes about ")
    assert results[1][2][0].endswith("still too little by this estimate   (checkpointing: auto)")
    for weights, lines, _ in results:
        assert weights.keys() == kept.keys()
        assert all(torch.equal(weights[name], kept[name]) for name in kept)
        assert [line["loss"] for line in lines] == [line["loss"] for line in kept_lines]


class Part:
    def __init__(self, err=None):
        self.asked, self.err = 0, err

    def checkpoint_activations(self):
        self.asked += 1
        if self.err:
            raise self.err


@pytest.fixture
def decide(tmp_path, monkeypatch):
    def run(word, memory, *parts):
        words = [*SMALL, f"stages.align.engine.checkpointing={word}"]
        (node,) = graph.plan(compose.load("quickstart", words), tmp_path)
        task.save(node)
        own, said = task.load(node.folder), []
        monkeypatch.setattr(recomputing, "memory", lambda: memory)
        events = type("Said", (), {"say": lambda self, text: said.append(text)})()
        return recomputing.decide(own, own.stage, parts, events), said

    return run


def test_parts_are_asked_where_it_comes_to_that(decide):
    part = Part()
    assert decide("auto", 80.0, part)[0] is False
    assert decide("auto", None, part) == (
        False, ["activations are kept: no GPU whose memory they could fill   (checkpointing: auto)"]
    )  # fmt: skip
    assert part.asked == 0
    assert decide("auto", 1e-3, part)[0] is True
    assert decide("true", 80.0, part) == (True, [])
    assert part.asked == 2


def test_a_part_that_cannot_is_an_error_only_where_it_was_asked_for(decide):
    for err, told in ((CardError("no such switch", fix="x"), "no such switch"), (NotImplementedError(), "Part cannot")):
        with pytest.raises(type(err)):
            decide("true", None, Part(err))
        _, said = decide("auto", 1e-3, Part(err))
        assert said[1].startswith(f"activations are kept after all: {told}")
