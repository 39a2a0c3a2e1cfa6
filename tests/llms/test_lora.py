"""LoRA and weights in 4 or 8 bits: only the updates learn; what is saved is a plain model with the same answers."""

import json
from importlib.util import find_spec

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from mmalign.errors import CardError
from mmalign.llms import lora
from mmalign.llms.causal import CausalLM
from mmalign.plan.recipe import EngineSettings as Settings
from mmalign.plan.recipe import Optim
from mmalign.training.engine import Engine
from mmalign.training.optim import groups
from tests import parts
from tests.conftest import TINY, command

peft = pytest.importorskip("peft")
IDS = torch.tensor([[3, 9, 4, 7, 5]])


def logits(mouth, ids=IDS):
    return mouth.head(mouth(mouth.embed(ids), torch.ones_like(ids)))


def learning(folder, **args):
    """A language model that is told to learn, as Model.freeze_all_but tells it."""
    mouth = CausalLM(str(folder), **args)
    mouth.prepare_training()
    return mouth.requires_grad_(True)


def trained(mouth):
    return {name: p for name, p in mouth.named_parameters() if p.requires_grad}


def moved(mouth):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained(mouth).values():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return mouth


@pytest.mark.parametrize("family", list(parts.FAMILIES))
@torch.no_grad()
def test_new_updates_change_nothing_and_merged_ones_are_a_plain_model(tmp_path, family):
    parts.llm(family, tmp_path / "a")
    mouth = learning(tmp_path / "a", lora=3).eval()
    assert torch.equal(logits(mouth), logits(CausalLM(str(tmp_path / "a")).eval()))
    moved(mouth).save(tmp_path / "b")
    again = CausalLM(str(tmp_path / "b")).eval()
    assert {name for name, _ in again.named_parameters()} == set(dict(CausalLM(str(tmp_path / "a")).named_parameters()))
    assert torch.allclose(logits(again), logits(mouth), atol=1e-5)
    assert not torch.allclose(logits(again), logits(CausalLM(str(tmp_path / "a"))), atol=1e-2)
    assert again.chat.template == mouth.chat.template


def test_only_the_updates_learn(tmp_path):
    parts.llm("llama", tmp_path)
    mouth = CausalLM(str(tmp_path), lora=3, lora_targets=["q_proj", "down_proj"])
    assert not trained(mouth.requires_grad_(True))  # nobody has told it to prepare
    mouth = learning(tmp_path, lora=3, lora_targets=["q_proj", "down_proj"])
    mouth.prepare_training()  # again changes nothing
    assert {name.split(".")[-4] for name in trained(mouth)} == {"q_proj", "down_proj"}
    assert {tuple(p.shape) for p in trained(mouth).values()} == {(3, 32), (32, 3), (3, 48)}
    assert not trained(mouth.requires_grad_(False))
    assert not any("lm_head" in name for name in trained(learning(tmp_path, lora=3)))


@torch.no_grad()
def test_the_update_is_that_of_the_paper(tmp_path):
    """h = W x + alpha / r B A x, section 4.1."""
    parts.llm("llama", tmp_path)
    mouth = moved(learning(tmp_path, lora=2, lora_alpha=7))
    layer = mouth.lm.model.layers[1].mlp.up_proj
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    weight = layer.base_layer.weight + 7 / 2 * up @ down
    given = torch.randn(4, 32)
    assert torch.allclose(layer(given), given @ weight.T, atol=1e-5)
    assert mouth.lora.alpha == 7
    assert CausalLM(str(tmp_path), lora=8).lora.alpha == 16  # twice the rank


class Alone(torch.nn.Module):
    """A language model under the engine, named as in a Model."""

    def __init__(self, mouth):
        super().__init__()
        self.llm = mouth

    def forward(self, ids):
        return torch.nn.functional.cross_entropy(logits(self.llm, ids)[0, :-1].float(), ids[0, 1:])


def engine(folder, zero, **more):
    torch.manual_seed(5)
    model, optim = Alone(learning(folder, lora=3, **more)), Optim(lr=1e-2)
    return Engine(model, groups(model.named_parameters(), optim), optim, Settings(zero=zero), "fp32", 1, 1)


def steps(made, start, stop):
    for step in range(start, stop):
        ids = torch.randint(3, 300, (1, 12), generator=torch.Generator().manual_seed(step))
        made.backward(made(ids))
        made.step(1.0, last=True)


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_trained_resumed_and_saved_under_deepspeed(tmp_path, zero):
    parts.llm("llama", tmp_path / "a")
    made = engine(tmp_path / "a", zero)
    steps(made, 0, 2)
    kept = {name: value.clone() for name, value in made.state()}
    assert {name.split("/")[0] for name in kept} == set(trained(made.module))
    steps(made, 2, 4)
    fresh = engine(tmp_path / "a", zero)
    fresh.load_state(kept, 2)
    steps(fresh, 2, 4)
    whole = fresh.weights("llm")
    assert all(torch.equal(value, whole[name]) for name, value in made.weights("llm").items())
    mouth = CausalLM(str(tmp_path / "a"))
    mouth.save(tmp_path / "before")
    made.module.llm.save(tmp_path / "b", whole)
    state = CausalLM(str(tmp_path / "b")).state_dict()
    before = mouth.state_dict()
    changed = {name for name, value in state.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "_proj" in name}
    if zero < 3:  # its weights lie in pieces
        again = CausalLM(str(tmp_path / "b"))
        assert torch.allclose(logits(again), logits(fresh.module.llm), atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_in_few_bits_learn_through_updates_and_are_saved_whole(tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    parts.llm("llama", tmp_path / "a", hidden_size=64, intermediate_size=128)
    assert not trained(CausalLM(str(tmp_path / "a"), bits=bits).requires_grad_(True))
    mouth = moved(learning(tmp_path / "a", bits=bits, lora=3).to(torch.bfloat16)).train()
    said = logits(mouth).float()
    said.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in trained(mouth).values())
    mouth.save(tmp_path / "b", mouth.state_dict())
    again = CausalLM(str(tmp_path / "b"))
    assert "quantization_config" not in json.loads((tmp_path / "b" / "config.json").read_text())
    assert all(p.is_floating_point() for p in again.parameters())
    assert torch.allclose(logits(again).float(), said, atol=5e-2 * float(said.detach().abs().max()))
    assert torch.equal(logits(mouth).float(), said)  # saving leaves it as it was


@pytest.mark.parametrize("zero", [0, 2])
def test_few_bits_are_trained_and_resumed_under_deepspeed(tmp_path, zero):
    pytest.importorskip("bitsandbytes")
    parts.llm("llama", tmp_path / "a", hidden_size=64, intermediate_size=128)
    made = engine(tmp_path / "a", zero, bits=4)
    steps(made, 0, 2)
    kept = {name: value.clone() for name, value in made.state()}
    assert all(".lora_" in name for name in kept)
    steps(made, 2, 4)
    fresh = engine(tmp_path / "a", zero, bits=4)
    fresh.load_state(kept, 2)
    steps(fresh, 2, 4)
    whole = fresh.weights("llm")
    assert all(torch.equal(value, whole[name]) for name, value in made.weights("llm").items() if ".lora_" in name)
    fresh.module.llm.save(tmp_path / "b", whole)
    again, own = CausalLM(str(tmp_path / "b")), fresh.module.llm.train()
    assert torch.allclose(logits(again), logits(own), atol=5e-2 * float(logits(own).detach().abs().max()))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"lora": 0}, "lora is a rank of 1 or more, not 0"),
        ({"lora": 4, "lora_alpha": -1}, "lora_alpha is above 0, not -1"),
        ({"lora": 4, "lora_dropout": 1.0}, "lora_dropout is at least 0 and below 1, not 1.0"),
        ({"lora": 4, "random": True}, "LoRA learns beside trained weights, and these are random"),
        ({"bits": 3}, "bits is 4 or 8, not 3"),
    ],
)
def test_settings_nobody_can_follow_are_refused_before_weights_load(args, said):
    with pytest.raises(CardError, match=said):
        CausalLM("no/such-checkpoint", **args)


def test_targets_that_are_not_there_are_named_with_those_that_are(tmp_path):
    parts.llm("phi3", tmp_path)
    with pytest.raises(CardError, match="no layer of Phi3ForCausalLM can take lora_targets") as caught:
        learning(tmp_path, lora=4, lora_targets=["q_proj"])
    assert "qkv_proj" in caught.value.fix


@pytest.mark.parametrize(
    ("package", "args", "fix"),
    [("peft", {"lora": 4}, "mmalign[lora]"), ("bitsandbytes", {"bits": 4}, "mmalign[bits]")],
)
def test_a_missing_package_names_its_extra(monkeypatch, package, args, fix):
    monkeypatch.setattr(lora, "find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(CardError, match=f"need.? the package {package}") as caught:
        CausalLM("no/such-checkpoint", **args)
    assert fix in caught.value.fix


@pytest.mark.slow
def test_a_recipe_trains_with_lora_and_exports_what_needs_none(here):
    recipe = TINY.replace("llm: toy-llama", "llm: {card: toy-llama, args: {lora: 4}}")
    (here / "lora.yaml").write_text(recipe + "  export: {kind: export, reads: {weights: tune}}\n")
    words = [f"stages.{stage}=~" for stage in ("label", "align", "score", "report")]
    said = command("run", "lora.yaml", *words, "stages.tune.reads=~", "stages.tune.steps=2", cwd=here)
    assert said.code == 0, said.err
    (log,) = here.glob("runs/train-*/events.jsonl")
    assert "of them" in log.read_text()  # the table: so many of the language model's parameters train
    (folder,) = here.glob("runs/export-*/exported")
    assert "lora" not in (folder / "config.json").read_text()
    weights = LlavaForConditionalGeneration.from_pretrained(folder).model.language_model.state_dict()
    before = CausalLM("pkg:mmalign.toyworld/llama").lm.base_model.state_dict()
    assert weights.keys() == before.keys()
    changed = {name for name, value in before.items() if not torch.equal(weights[name][: len(value)], value)}
    assert changed == {name for name in before if "_proj" in name}
