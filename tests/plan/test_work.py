"""The arithmetic of a stage, beside what torch counts of a step, and how long it is said to take."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmalign.adapters.mlp import MLP
from mmalign.io import pretrained
from mmalign.llms.causal import CausalLM
from mmalign.objectives.lm import NextToken
from mmalign.pipeline import rates
from mmalign.plan import estimate, graph, work
from mmalign.plan import read as compose
from mmalign.plan.cards import Card
from mmalign.vision.hf import HFVision
from mmalign.vlm.model import VLM
from mmalign.vlm.supervised import Supervised
from tests import parts
from tests.vlm.test_model import collate


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("parts")
    eye, mouth = HFVision(str(parts.clip(place / "clip"))), CausalLM(str(parts.llm("llama", place / "llm")))
    return Supervised(VLM(eye, MLP(eye.dim, mouth.dim, eye.grid), mouth), {"lm": NextToken()})


def counted(model, trains, recompute):
    """What torch counts of a pass, forward and backward; the positions of its row; how many of them have an answer."""
    model.vlm.freeze_all_but(trains)
    model.train()
    if recompute:
        model.vlm.llm.checkpoint_activations()
    batch = collate(model).batch([3], seed=0)  # one image, a long answer
    with FlopCounterMode(display=False) as counter:
        terms, _ = model(batch)
        terms["lm"].backward()
    pretrained.recompute(model.vlm.llm.lm, on=False)
    return counter.get_total_flops(), batch.ids_RS.shape[1], int((batch.weight_RS > 0).sum())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("trains", [["adapter"], ["adapter", "llm"], ["vision", "adapter", "llm"]])
def test_the_products_are_those_that_torch_counts(model, trains, recompute):
    real, tokens, answered = counted(model, trains, recompute)
    vlm, config = model.vlm, model.vlm.llm.lm.config
    dim, layers, vocab = config.hidden_size, config.num_hidden_layers, config.vocab_size
    # torch does not count attention on a CPU: scores and sums of half the positions, forward, backward, again
    real += (2 * layers * tokens * tokens * dim) * (3 + recompute)
    # and the head is run where an answer is, here counted for all of the text
    real += 2 * (tokens - vlm.tokens - answered) * vocab * dim * (3 if "llm" in trains else 2)

    sizes = {part: sum(value.numel() for value in vlm.parameters_of(part)) for part in ("vision", "adapter", "llm")}
    facts = {"dim": dim, "layers": layers, "vocab": vocab, "tied": config.tie_word_embeddings}
    cards = {
        "llm": Card("", "", {}, facts=facts),
        "vision": Card("", "", {}, facts={"grid": list(vlm.vision.grid)}),
    }
    given = compose.load("quickstart", [f"stages.align.engine.checkpointing={str(recompute).lower()}"])
    stage = next(node.stage for node in graph.plan(given, "runs") if node.name == "align")
    stage = replace(stage, trains=trains, batch=1)
    told = estimate.Estimate(parameters=sizes, visual=vlm.tokens, tokens=tokens, steps=1)
    assert work.flops(SimpleNamespace(stage=stage, cards=cards), told) == pytest.approx(real, rel=0.08)


def of(recipe, name="align", *overrides):
    node = next(node for node in graph.plan(compose.load(recipe, overrides), "runs") if node.name == name)
    return work.flops(node, estimate.of(node))


def test_stages_of_real_size():
    """LLaVA-1.5's first stage: 558,128 rows, forward and back through 6.5 B weights at 640 positions each."""

    def llava(name, again, *overrides):
        return of("llava_vicuna7b", name, f"stages.{name}.engine.checkpointing={again}", *overrides)

    assert llava("align", "false") == pytest.approx(558_128 * 4 * 6.48e9 * 640, rel=0.1)
    assert llava("align", "true") == pytest.approx(558_128 * 6 * 6.48e9 * 640, rel=0.1)
    assert llava("tune", "true") == pytest.approx(665_298 * 8 * 6.48e9 * 640, rel=0.1)
    assert llava("tune", "false") == pytest.approx(665_298 * 6 * 6.48e9 * 640, rel=0.1)
    assert llava("tune", "false", "model.llm.args={lora: 16}") == pytest.approx(665_298 * 4 * 6.48e9 * 640, rel=0.1)
    several, one = llava("align", "false", "model.vision=clip-vit-l-336-s2"), llava("align", "false")
    assert several - one == pytest.approx(558_128 * 13 * 2 * 576 * 304e6, rel=0.1)


def test_what_is_not_known_is_not_told():
    assert of("quickstart", "label") is None
    node = next(node for node in graph.plan(compose.load("llava_vicuna7b"), "runs") if node.name == "align")
    assert work.flops(node, estimate.Estimate(parameters={"vision": 1, "adapter": None, "llm": 1}, steps=1)) is None


@pytest.fixture
def machine(monkeypatch):
    """A machine whose cores make 100 GFLOP/s, and what nvidia-smi says there."""
    monkeypatch.setattr(rates, "products", lambda: 100e9)
    monkeypatch.setattr(rates.processor, "cores", lambda: 2)
    monkeypatch.setattr(rates.processor, "lacks_bf16", lambda: False)

    def with_gpus(*names):
        monkeypatch.setattr(rates, "gpus", lambda: names)

    with_gpus()
    return with_gpus


def test_how_long_it_takes(machine):
    day = 86400 * 100e9 * rates.CPU["fp32"]
    times = rates.seconds(30 * day, devices=1, precision="fp32")
    assert times["this machine's 2 cores"] == pytest.approx(30 * 86400)
    assert rates.line(30 * day, times).endswith("on one H200, 30 days on this machine's 2 cores")
    assert rates.seconds(1e18, 8)["8 H200"] == pytest.approx(rates.seconds(1e18, 1)["one H200"] / 8)
    machine("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB")
    times = rates.seconds(1e18, 2)
    assert [*times] == ["2 H200", "2 NVIDIA A100-SXM4-80GB"]
    assert times["2 NVIDIA A100-SXM4-80GB"] == pytest.approx(1e18 / 2 / 312e12 / rates.GPU)
    machine("Quadro K600")
    assert [*rates.seconds(1e18, 1)] == ["one H200"]


def test_the_longest_name_is_looked_for_first():
    """An H100 PCIe is no H100, an L40S no L40, and neither an L4."""
    for number, name in enumerate(rates.PEAKS):
        first = next(other for other in rates.PEAKS if other in f"NVIDIA {name}")
        assert first == name, number


@pytest.mark.parametrize(("lacks", "share"), [(False, rates.CPU["bf16"]), (True, rates.EMULATED)])
def test_bf16_on_cores_that_have_it_or_not(machine, monkeypatch, lacks, share):
    monkeypatch.setattr(rates.processor, "lacks_bf16", lambda: lacks)
    assert rates.seconds(1e15, 1)["this machine's 2 cores"] == pytest.approx(1e15 / 100e9 / share)


@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("echo NVIDIA T4, 15360 MiB; echo NVIDIA T4, 15360 MiB", ("NVIDIA T4", "NVIDIA T4")),
        ("echo no devices were found; exit 6", ()),
        ("exit 0", ()),
    ],
)
def test_what_nvidia_smi_says(script, names, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert rates.gpus.__wrapped__() == names
    monkeypatch.setenv("PATH", "")
    assert rates.gpus.__wrapped__() == ()


def test_amounts():
    assert [rates.amount(flops) for flops in (2e9, 3.25e12, 1e15, 1.44e19, 5e21)] == [
        "2 GFLOP", "3.25 TFLOP", "1 PFLOP", "14.4 EFLOP", "5 ZFLOP",
    ]  # fmt: skip


def test_products_are_measured():
    assert 1e8 < rates.products.__wrapped__() < 1e15
