"""What the cards of language models say is what the models are: built from their facts, without memory for weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mmalign.io import files
from mmalign.llms.lora import Lora, learn
from mmalign.plan.cards import Registry
from mmalign.plan.estimate import lora_parameters

CARDS = {card.name: card for card in Registry().every("llms")}
PUBLISHED = {name: card for name, card in CARDS.items() if "family" in card.facts}
NAMES = {  # a fact: what transformers calls it
    "dim": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads", "head_dim": "head_dim", "inner": "intermediate_size", "vocab": "vocab_size",
    "tied": "tie_word_embeddings",
}  # fmt: skip
TEMPLATES = Path(__file__).parents[2] / "mmalign" / "llms" / "templates"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameters_are_those_of_the_shape(name):
    """The published count, of the shape the other facts describe."""
    facts = PUBLISHED[name].facts
    shape = {NAMES[fact]: value for fact, value in facts.items() if fact in NAMES}
    bias = {"attention_bias": False} if facts["family"] != "qwen2" else {}  # Qwen2's queries, keys and values have one
    config = AutoConfig.for_model(facts["family"], **shape, **bias, pad_token_id=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == facts["parameters"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_plan_counts_loras_updates_as_peft_makes_them(name):
    pytest.importorskip("peft")
    card = PUBLISHED[name]
    shape = {NAMES[fact]: value for fact, value in card.facts.items() if fact in NAMES} | {"num_hidden_layers": 2}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(card.facts["family"], **shape, pad_token_id=0))
        Lora(8, 16, 0.0, "all-linear").put_into(model)
    small = replace(card, facts={**card.facts, "layers": 2}, args={**card.args, "lora": 8})
    assert lora_parameters(small) == sum(p.numel() for p in learn(model))
    out = "dense" if card.facts["family"] == "phi" else "o_proj"
    some = replace(small, args={**small.args, "lora_targets": [out]})
    named = [p for path, p in model.named_parameters() if f"{out}.lora_" in path]
    assert lora_parameters(some) == sum(p.numel() for p in named)
    assert lora_parameters(replace(small, args={**small.args, "lora_targets": ["nothing"]})) is None


@pytest.mark.parametrize("name", CARDS)
def test_the_template_is_one_of_ours_and_facts_are_whole(name):
    card = CARDS[name]
    assert {"dim", "layers", "vocab"} <= set(card.facts)
    assert card.paper.startswith("https://arxiv.org/abs/")
    assert card.license
    if name in PUBLISHED:
        place = files.local(card.args["template"])
        assert place.parent == TEMPLATES
        assert place.exists()


def test_every_family_asked_for_is_there():
    asked = {"gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3"}
    assert {card.facts["family"] for card in PUBLISHED.values()} >= asked
    assert {"gemma-2b-it", "phi3-mini-4k", "llama3-8b-instruct", "vicuna-7b", "vicuna-13b"} <= set(CARDS)


def test_every_template_belongs_to_a_card_but_that_of_captions():
    named = {Path(card.args["template"]).stem for card in PUBLISHED.values()}
    assert {place.stem for place in TEMPLATES.glob("*.jinja")} == named | {"plain"}
