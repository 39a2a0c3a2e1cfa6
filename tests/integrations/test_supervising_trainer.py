"""Supervision under transformers' Trainer: trained, saved and loaded in plain transformers; with LoRA, too."""

import copy
from collections import Counter
from functools import cache

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

import mmalign
from tests.integrations import families
from tests.integrations.test_declared import ROWS, batch, picture
from tests.integrations.test_supervising import BASIC, fresh, labelled

trained = pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "llava_onevision"])
PROJECTORS = {"llava": "multi_modal_projector", "qwen2_5_vl": "merger", "llava_onevision": "multi_modal_projector"}
TERMS = {"sea": 1.0, **BASIC}


@pytest.fixture(autouse=True)
def no_rank(monkeypatch):
    """A process as a reader's is: DeepSpeed, in other tests of this one, names a rank, and accelerate believes it."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@cache
def labeller():
    return mmalign.Labeller("toy-words", top_k=3, images=[picture(40, 30)])


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows=ROWS, size=8):
        self.rows, self.size = rows, size

    def __len__(self):
        return self.size

    def __getitem__(self, number):
        return self.rows[number % len(self.rows)]


def train(supervised, processor, place, rows=None, steps=10, **more):
    """A Trainer that ran so many steps."""
    settings = {
        "max_steps": steps, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "save_strategy": "no",
        "logging_steps": 1, "report_to": [], "use_cpu": True, "remove_unused_columns": False, "disable_tqdm": True,
    }  # fmt: skip
    model = supervised._model[0]
    trainer = Trainer(
        model=supervised, args=TrainingArguments(str(place), **settings | more), train_dataset=rows or Rows(),
        data_collator=lambda rows: labelled(model, processor, rows), callbacks=[supervised.log_terms()],
    )  # fmt: skip
    trainer.train()
    return trainer


def answer(model, inputs):
    asked = {name: value for name, value in inputs.items() if name != "labels"}
    return model.generate(**asked, do_sample=False, max_new_tokens=4).tolist()


def same(model, loaded, inputs):
    """Logits and greedy answers are those of the other."""
    model.eval(), loaded.eval()
    with torch.no_grad():
        logits, own = loaded(**inputs).logits, model(**inputs).logits
    assert torch.allclose(logits, own, atol=1e-4)
    assert answer(loaded, inputs) == answer(model, inputs)


@trained
def test_ten_steps_saved_and_loaded_in_plain_transformers(family, tmp_path):
    """And what the Trainer saves is all of it, the objectives' own parameters with it, each under one name."""
    model, processor = fresh(family)
    supervised = mmalign.supervise(model, processor, TERMS, labels=labeller())
    before = {name: value.detach().clone() for name, value in supervised.named_parameters()}
    trainer = train(supervised, processor, tmp_path / "out")
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 10
    assert all({"lm", *TERMS} <= line.keys() for line in lines)
    moved = {name for name, value in supervised.named_parameters() if not torch.equal(value, before[name])}
    assert any("lm_head" in name for name in moved)
    assert any("vis" in name for name in moved)
    assert any(name.startswith("objectives.sea") for name in moved)
    model.save_pretrained(tmp_path / "plain")
    assert "mmalign" not in (tmp_path / "plain" / "config.json").read_text()
    same(model, type(model).from_pretrained(tmp_path / "plain"), labelled(model, processor))
    trainer.save_model(str(tmp_path / "whole"))
    other = mmalign.supervise(*fresh(family), TERMS, labels=labeller())
    other.load_state_dict(load_file(tmp_path / "whole" / "model.safetensors"))  # strictly
    for (name, ours), theirs in zip(supervised.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@trained
def test_ten_steps_with_lora_on_the_language_model(family, tmp_path):
    """The adapter and the projector are saved by peft, and lie around the untouched model in plain transformers."""
    peft = pytest.importorskip("peft")
    model, processor = fresh(family)
    lora = peft.LoraConfig(
        r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=[PROJECTORS[family]]
    )
    tuned = peft.get_peft_model(model, lora)
    supervised = mmalign.supervise(tuned, processor, BASIC)
    train(supervised, processor, tmp_path / "out", learning_rate=1e-2)
    tuned.save_pretrained(tmp_path / "adapter")
    plain, inputs = fresh(family)[0], labelled(tuned, processor)
    untuned = copy.deepcopy(plain)(**inputs).logits
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter")
    same(tuned, loaded, inputs)
    assert not torch.allclose(loaded(**inputs).logits, untuned, atol=1e-2)
    learned = {name for name, value in supervised.named_parameters() if value.requires_grad}
    assert all("lora" in name or "modules_to_save" in name for name in learned)


@trained
def test_gradient_checkpointing_by_the_trainer(family, tmp_path):
    logs = []
    for checkpointed in (False, True):
        model, processor = fresh(family)
        supervised = mmalign.supervise(model, processor, BASIC)
        trainer = train(supervised, processor, tmp_path, steps=2, gradient_checkpointing=checkpointed)
        logs.append([line for line in trainer.state.log_history if "loss" in line])
        assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules()) == checkpointed
    for plain, again in zip(*logs, strict=True):
        assert again["loss"] == pytest.approx(plain["loss"], rel=1e-4)


# Names


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_each_parameter_has_one_name(family, lora):
    """So nobody who saves, shards or wraps by the module tree meets it twice."""
    model, processor = fresh(family)
    if lora:
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "qkv"]))
    supervised = mmalign.supervise(model, processor, TERMS, labels=labeller())
    every = list(supervised.named_parameters(remove_duplicate=False))
    assert len({id(value) for _, value in every}) == len(every)
    assert {id(value) for value in model.parameters()} <= {id(value) for _, value in every}
    places = Counter(id(module) for _, module in supervised.named_modules(remove_duplicate=False))
    own = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    assert all(places[module] <= count for module, count in own.items())
    if family != "llava" or lora:  # which is taken apart
        names = {f"vlm.whole.{name}" for name, _ in model.named_parameters()}
        assert {name for name, _ in every if not name.startswith("objectives.")} == names


def test_the_language_model_inside_knows_its_parameters_and_its_mode():
    """Outside the module tree, it still is a language model."""
    model, processor = fresh("qwen2_5_vl")
    vlm = mmalign.supervise(model, processor, BASIC).vlm
    own = {id(value) for value in [*model.model.language_model.parameters(), *model.lm_head.parameters()]}
    assert {id(value) for value in vlm.llm.parameters()} == own
    assert vlm.device == next(model.parameters()).device
    vlm.llm.train()
    assert model.lm_head.training
    assert all(module.training for module in model.model.language_model.modules())
    assert not model.model.visual.training


def test_a_tied_head_is_saved_once():
    model, processor = fresh("qwen2_5_vl")
    model.lm_head.weight = model.get_input_embeddings().weight
    supervised = mmalign.supervise(model, processor, BASIC)
    assert not any("lm_head" in name for name in supervised.state_dict())
    supervised.load_state_dict(supervised.state_dict())


# Batches of unlike ranks


def test_a_pass_that_trains_no_token_goes_back_through_every_layer():
    """A rank with nothing to learn from waits for the others in every layer, where weights are divided."""
    model, processor = fresh("qwen2_5_vl")
    supervised = mmalign.supervise(model, processor)
    inputs = dict(batch(processor))
    supervised(**inputs)["loss"].backward()
    grads = {name: value.grad for name, value in model.named_parameters()}
    assert all(grad is not None and not grad.any() for name, grad in grads.items() if "language_model.layers" in name)
    assert grads["lm_head.weight"] is not None


# What a trainer asks of a model


def test_a_trainer_asks_the_model_itself():
    model, processor = fresh("qwen2_5_vl")
    supervised = mmalign.supervise(model, processor, BASIC)
    assert supervised.config is model.config
    assert supervised.generation_config is model.generation_config
    assert supervised._no_split_modules == model._no_split_modules  # what Accelerate wraps
    assert supervised.get_output_embeddings() is model.lm_head
    with pytest.raises(AttributeError, match="no attribute 'hf_device_map'"):
        _ = supervised.hf_device_map
    assert not hasattr(mmalign.supervise(mmalign.supervise(*fresh("llava")).vlm), "config")
