"""`engine.compile`: the same losses and weights by compiled layers; our own errors where nothing can be compiled."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from mmalign.errors import CheckError
from mmalign.pipeline import build, task
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.stages import compiling, train

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
SMALL = [
    "stages.label=~", "stages.tune=~", "stages.score=~", "stages.report=~", "stages.align.reads=~",
    "stages.align.objectives={lm: 1.0, sea: ~, basic-direction: 0.1, basic-distribution: 0.01}",
    "stages.align.trains=[adapter, llm]", "stages.align.steps=2", "stages.align.batch=5", "stages.align.micro_batch=5",
    "stages.align.precision=fp32", "stages.align.engine.workers=0", "stages.align.log_every=1",
]  # fmt: skip


def planned(folder, *words):
    (node,) = graph.plan(compose.load("quickstart", [*SMALL, *words]), folder)
    task.save(node)
    return task.load(node.folder)


def trained(folder, *words):
    own = planned(folder, *words)
    train.run(own)
    paths = sorted((own.folder / "weights").rglob("*.safetensors"))
    weights = {f"{path.parent.name}/{name}": value for path in paths for name, value in load_file(path).items()}
    said = (own.folder / "events.jsonl").read_text()
    return weights, [json.loads(line) for line in (own.folder / "metrics.jsonl").read_text().splitlines()], said


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("engine", [[], ["stages.align.engine.checkpointing=true", "stages.align.engine.zero=1"]])
def test_compiled_layers_learn_the_same(tmp_path, engine):
    """With BASIC's hooks and attention rows, samples of other lengths a step, and recomputed activations; in fp32."""
    plain, lines, said = trained(tmp_path / "plain", *engine)
    assert "compiled" not in said
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    weights, ours, said = trained(tmp_path / "compiled", *engine, "stages.align.engine.compile=true")
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0  # something was compiled
    assert "compiled: the layers of the language model and of the vision encoder" in said
    assert weights.keys() == plain.keys()
    for one, other in zip(ours, lines, strict=True):
        for name in ("loss", "lm", "basic-direction", "basic-distribution", "norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), name
    for name, value in weights.items():  # AdamW makes a step of the rate, 1e-3, of a gradient that is rounding alone
        assert (value - plain[name]).abs().mean() < 2e-5, name


def test_without_a_compiler_it_is_said_before_weights_are_read(tmp_path, monkeypatch):
    own = planned(tmp_path, "stages.align.engine.compile=true")

    def missing(*_, **__):
        def call(*_):
            raise RuntimeError("No working C++ compiler found in cpp.cxx: g++\nand more")

        return call

    monkeypatch.setattr(torch, "compile", missing)
    monkeypatch.setattr(build, "vlm", lambda own: pytest.fail("weights were read"))
    with pytest.raises(CheckError) as caught:
        train.run(own)
    assert caught.value.what == "torch.compile does not work here: No working C++ compiler found in cpp.cxx: g++"
    assert caught.value.at == "engine.compile"
    assert caught.value.fix == "install a C++ compiler (g++; CXX names another), or engine: {compile: false}"


def test_nothing_is_tried_where_nobody_asks(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    compiling.check(planned(tmp_path).stage)
