"""`engine.compile`: the same losses and weights by compiled layers; our own errors where nothing can be compiled."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from mmalign.errors import CheckError
from mmalign.integrations.checkpoint import Checkpoint
from mmalign.integrations.whole import WholeVLM
from mmalign.llms import LLM
from mmalign.llms.causal import CausalLM
from mmalign.pipeline import build, task
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.plan.recipe import EngineSettings
from mmalign.stages import compiling, train
from mmalign.vision import Vision
from mmalign.vision.hf import HFVision
from mmalign.vision.s2 import S2
from tests import parts
from tests.integrations import families

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


@pytest.fixture
def compiled(monkeypatch):
    """How often something ran compiled, by a torch.compile that changes nothing."""
    runs = []

    def fake(plain, dynamic=None):
        assert dynamic

        def fast(*inputs, **options):
            runs.append(plain)
            return plain(*inputs, **options)

        return fast

    monkeypatch.setattr(torch, "compile", fake)
    return runs


def test_layers_run_compiled_where_there_is_a_gradient(tmp_path, compiled):
    """Their hooks and the names of their weights stay."""
    llm = CausalLM(str(parts.llm("llama", tmp_path)))
    names, seen = list(llm.state_dict()), []
    llm.lm.base_model.layers[0].register_forward_hook(lambda *_: seen.append(len(compiled)))
    llm.compile_layers()
    assert list(llm.state_dict()) == names
    embeds, mask = torch.randn(1, 4, llm.dim), torch.ones(1, 4, dtype=torch.long)
    with torch.no_grad():
        without = llm(embeds, mask)
    assert (compiled, seen) == ([], [0])
    assert torch.equal(llm(embeds, mask), without)
    assert len(compiled) == llm.depth
    assert seen == [0, 1]


def test_an_encoder_that_is_frozen_is_compiled_too(tmp_path, compiled):
    vision = HFVision(str(parts.clip(tmp_path)))
    assert S2.compile_layers(SimpleNamespace(encoder=vision))
    with torch.no_grad():
        vision(torch.zeros(1, 3, vision.image_size, vision.image_size))
    assert len(compiled) == vision.depth
    assert Vision.compile_layers(vision) is False  # of an encoder that says nothing of it


def test_the_language_model_of_a_whole_model(compiled):
    whole, said = WholeVLM(*families.make("qwen2_5_vl")), []
    whole.compile_layers = lambda: Checkpoint.compile_layers(whole)
    whole.__class__ = type("Whole", (Checkpoint,), {})
    stage = SimpleNamespace(engine=EngineSettings(compile=True))
    compiling.apply(stage, whole, SimpleNamespace(say=said.append))
    assert said == ["compiled: the layers of the language model"]
    llm = whole.llm
    llm(torch.randn(1, 4, llm.dim), torch.ones(1, 4, dtype=torch.long))
    assert len(compiled) == llm.depth
    Checkpoint.attend(whole, "eager")
    assert llm.body.config._attn_implementation == "eager"


def test_a_language_model_that_cannot_be_compiled_is_refused():
    with pytest.raises(CheckError) as caught:
        LLM().compile_layers()
    assert caught.value.what == "the layers of LLM cannot be compiled"
    assert caught.value.fix == "engine: {compile: false}"


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
