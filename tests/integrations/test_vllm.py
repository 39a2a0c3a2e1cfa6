"""An exported model inside vLLM, for which stub_vllm.py stands: what it is asked, and what it cannot be asked."""

import inspect
import sys

import pytest
import torch

from mmalign.adapters.mlp import MLP
from mmalign.benchmarks import Cut
from mmalign.benchmarks.alignment import Alignment
from mmalign.errors import CheckError, RunError
from mmalign.integrations import vllm
from mmalign.llms.causal import CausalLM
from mmalign.toyworld.benchmarks import Lookup
from mmalign.toyworld.data import Captions
from mmalign.vision.hf import HFVision
from mmalign.vlm.model import VLM
from tests import parts
from tests.integrations import stub_vllm
from tests.vlm.test_prefix import Quiz


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(3)
    eye = HFVision(str(parts.clip(tmp_path_factory.mktemp("clip"))), fit="pad")
    mouth = CausalLM(str(parts.llm("llama", tmp_path_factory.mktemp("llama"))))
    for name, parameter in mouth.named_parameters():  # sharper than as initialised, so that answers differ
        if parameter.dim() > 1 and "embed" not in name:
            parameter.data.mul_(3)
    return VLM(eye, MLP(eye.dim, mouth.dim, eye.grid), mouth).eval()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "out"
    parts.exported(model, folder)
    return str(folder)


@pytest.fixture
def inside(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", stub_vllm)


def test_prompts_are_those_of_our_engine(model, exported, inside):
    """The same weights say the same behind the same prompts, with an image and without."""
    bench = Quiz(images=2, each=3)
    ours, theirs = (
        {one.id: text for one, text in engine.answers(bench, bench.questions(), batch=4)}
        for engine in (model, vllm.VLLM(exported))
    )
    assert theirs == ours
    assert [isinstance(theirs[key], Cut) for key in ours] == [isinstance(text, Cut) for text in ours.values()]
    assert any(isinstance(text, Cut) for text in ours.values())
    assert len(set(ours.values())) > 1


def test_only_answers_in_words_can_be_had():
    vllm.check([Quiz()])
    for bench in (Alignment(Captions(4)), Lookup(1)):
        with pytest.raises(CheckError, match=f"{type(bench).__name__} looks inside the model") as error:
            vllm.check([Quiz(), bench])
        assert error.value.fix == "leave out --vllm"


def test_what_vllm_cannot_load(exported, inside, monkeypatch):
    def refuse(**_):
        raise NotImplementedError("Unsupported vision config: Dinov2Config\nand more")

    monkeypatch.setattr(stub_vllm, "LLM", refuse)
    with pytest.raises(RunError, match="vLLM cannot load the model: Unsupported vision config: Dinov2Config") as error:
        vllm.VLLM(exported)
    assert error.value.at == exported


def test_one_layer_has_an_activation_that_vllm_knows(model, exported, inside, tmp_path):
    one = VLM(model.vision, MLP(model.vision.dim, model.llm.dim, model.vision.grid, depth=1), model.llm).eval()
    parts.exported(one, tmp_path / "out")
    assert vllm.VLLM(str(tmp_path / "out")).llm.overrides == {"projector_hidden_act": "torch.nn.modules.Identity"}
    assert vllm.VLLM(exported).llm.overrides == {}


def test_our_calls_are_those_that_vllm_takes(exported, monkeypatch):
    """Each is bound to the signature of the real class; the stub answers."""
    real = pytest.importorskip("vllm")
    arguments = pytest.importorskip("vllm.engine.arg_utils", exc_type=ImportError).EngineArgs
    build, generate = inspect.signature(real.LLM), inspect.signature(real.LLM.generate)
    asked = []

    class Checked(stub_vllm.LLM):
        def __init__(self, **settings):
            bound = build.bind(**settings).arguments
            arguments(model=bound["model"], **bound.get("kwargs", {}))
            super().__init__(**settings)

        def generate(self, *given, **named):
            bound = generate.bind(self, *given, **named).arguments
            asked.extend(bound["prompts"])
            return super().generate(bound["prompts"], bound["sampling_params"], bound["use_tqdm"])

    monkeypatch.setattr(real, "LLM", Checked)
    bench = Quiz(images=1, each=2)
    assert len(list(vllm.VLLM(exported).answers(bench, bench.questions(), batch=2))) == len(asked) > 0
    assert {key for prompt in asked for key in prompt} <= set(real.TokensPrompt.__annotations__)


def test_without_vllm(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(RunError, match="need the package vllm") as error:
        vllm.VLLM(exported)
    assert error.value.fix == "pip install mmalign[vllm]"
