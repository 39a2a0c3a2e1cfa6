"""Estimates from facts: published sizes, ZeRO's shares, and what they leave open."""

import pytest

from mmalign.plan import estimate, graph
from mmalign.plan import read as compose
from mmalign.plan.read import shipped


def stage(recipe, name="align", *overrides, devices=8, tmp_path="runs"):
    nodes = graph.plan(compose.load(recipe, overrides), tmp_path)
    return estimate.of(next(n for n in nodes if n.name == name), devices)


def test_llava_7b():
    found = stage("llava_vicuna7b")
    assert found.parameters == {"vision": 304_293_888, "adapter": 20_979_712, "llm": 6_738_415_616}
    assert found.trained == 20_979_712  # LLaVA-1.5's projector has 21 M
    assert found.visual == 576
    assert found.steps == 2_181  # 558,128 rows in batches of 256
    tune = stage("llava_vicuna7b", "tune")
    assert tune.trained == 20_979_712 + 6_738_415_616
    zero = {n: tune.memory[f"ZeRO {n}"] for n in range(4)}
    every = sum(tune.parameters.values())
    assert zero[0]["weights"] == pytest.approx(2 * every / estimate.GIB)
    assert zero[3]["weights"] == pytest.approx(zero[0]["weights"] / 8)
    assert zero[1]["optimizer"] == pytest.approx(12 * tune.trained / estimate.GIB / 8)
    assert zero[1]["gradients"] == zero[0]["gradients"]
    assert zero[2]["gradients"] == pytest.approx(zero[0]["gradients"] / 8)
    assert [zero[n]["total"] for n in range(4)] == sorted((zero[n]["total"] for n in range(4)), reverse=True)


def test_lora_and_few_bits():
    """LoRA of rank 16 on every linear layer of Vicuna 7B is 40 M parameters; four bits are a quarter of bf16."""
    args = "model.llm.args={lora: 16, bits: 4}"
    tune, plain = stage("llava_vicuna7b", "tune", args), stage("llava_vicuna7b", "tune")
    assert tune.trained == 20_979_712 + 39_976_960
    llm, other = tune.parameters["llm"], tune.parameters["vision"] + tune.parameters["adapter"]
    assert tune.memory["ZeRO 0"]["weights"] == pytest.approx((llm / 2 + other * 2) / estimate.GIB)
    assert tune.checkpoint < plain.checkpoint / 100
    assert stage("llava_vicuna7b", "align", args).trained == 20_979_712


def test_an_encoder_that_learns_in_part():
    """12 of the 24 layers of CLIP ViT-L/336 have 151 M parameters; an estimate takes its half."""
    half = stage("llava_finetune_vision", "tune", "model.vision.args.frozen=12")
    whole = stage("llava_finetune_vision", "tune")
    assert whole.trained - half.trained == 304_293_888 // 2 == pytest.approx(12 * 12_596_224, rel=0.01)
    assert stage("llava_finetune_vision", "align", "model.vision.args.frozen=12").trained == 20_979_712
    for wrong in ("x", 25, -1, "[1]"):
        assert stage("llava_finetune_vision", "tune", f"model.vision.args.frozen={wrong}").trained is None


def test_checkpointing_keeps_less():
    long = stage("llava_vicuna7b", "tune", "stages.tune.engine.checkpointing=false")
    assert long.memory["ZeRO 3"]["activations"] > 5 * stage("llava_vicuna7b", "tune").memory["ZeRO 3"]["activations"]


AUTO = "stages.tune.engine.checkpointing=auto"


def of_tune(*words, recipe="llava_vicuna7b"):
    return next(n for n in graph.plan(compose.load(recipe, words), "runs") if n.name == "tune")


def test_auto_recomputes_where_the_device_is_too_small():
    """The border is the one that `plan` prints; at it, activations are kept."""
    found, kept = stage("llava_vicuna7b", "tune", AUTO), stage("llava_vicuna7b", "tune", AUTO.replace("auto", "false"))
    assert found.memory == kept.memory
    assert kept.keeps_from is None
    assert found.keeps_from == pytest.approx(kept.memory["ZeRO 3"]["total"] / 0.9)
    assert f"recomputed on GPUs of less than {found.keeps_from:.1f} GiB" in estimate.lines(found)[-1]
    node = of_tune(AUTO)
    assert estimate.recomputing(node.stage, node.cards, 8, found.keeps_from + 1e-6)[0] is False
    recomputed, why = estimate.recomputing(node.stage, node.cards, 8, found.keeps_from - 1e-6)
    assert recomputed
    again = stage("llava_vicuna7b", "tune", AUTO.replace("auto", "true")).memory["ZeRO 3"]["total"]
    total = kept.memory["ZeRO 3"]["total"]
    assert f"with them the stage takes about {total:.1f} GiB, without {again:.1f} GiB, and there are" in why
    assert "still too little" not in why
    assert "still too little" in estimate.recomputing(node.stage, node.cards, 8, 10.0)[1]
    assert estimate.recomputing(node.stage, node.cards, 1, found.keeps_from)[0]  # one device holds all of it


def test_auto_without_a_gpu_without_facts_and_what_is_no_auto():
    node = of_tune(AUTO)
    assert estimate.recomputing(node.stage, node.cards, 8, None) == (False, "no GPU whose memory they could fill")
    open_ = of_tune(AUTO, "model.adapter={card: q-former, args: {depth: 5}}")
    kept, why = estimate.recomputing(open_.stage, open_.cards, 8, 1.0)
    assert (kept, "the cards do not say how much" in why) == (False, True)
    for word in ("true", "false"):
        node = of_tune(AUTO.replace("auto", word))
        assert estimate.recomputing(node.stage, node.cards, 8, 1.0) == (word == "true", f"checkpointing: {word}")


def test_auto_of_a_language_model_alone():
    """All its samples of a device are one pass, so a step's activations halve with twice the devices."""
    nodes = graph.plan(compose.load("toyworld"), "runs")
    node = next(n for n in nodes if n.stage.kind == "language")
    two, four = (estimate._language(node.stage, node.cards, n).memory["ZeRO 0"] for n in (2, 4))
    assert two["activations"] == pytest.approx(2 * four["activations"])
    assert estimate.recomputing(node.stage, node.cards, 1, 1e-3)[0]
    assert not estimate.recomputing(node.stage, node.cards, 1, 1e3)[0]


def test_logits_of_a_longer_text():
    """A pass keeps, for every token of text, V logits in the model's precision and in fp32, and their gradient."""
    (node,) = (n for n in graph.plan(compose.load("llava_vicuna7b"), "runs") if n.name == "align")
    llm = node.cards["llm"]
    assert "tokens" not in node.cards["data"].facts
    vision_only, layers = (estimate.activations(node.stage, llm, 1000, visual) for visual in (1000, 900))
    assert layers - vision_only == node.stage.micro_batch * 100 * llm.facts["vocab"] * (2 + 8)
    short = estimate.of(node)
    node.cards["data"].facts["tokens"] = 512
    long = estimate.of(node)
    assert (short.tokens, long.tokens) == (576 + 64, 576 + 512)
    more = (long.memory["ZeRO 0"]["activations"] - short.memory["ZeRO 0"]["activations"]) * estimate.GIB
    assert more > node.stage.micro_batch * (512 - 64) * llm.facts["vocab"] * (2 + 8)


@pytest.mark.parametrize(
    ("adapter", "tokens"),
    [("linear", 576), ("pixel-shuffle", 144), ("perceiver-resampler", 64), ("c-abstractor", 144)],
)
def test_visual_tokens_of_every_kind_of_adapter(adapter, tokens):
    assert stage("llava_vicuna7b", "align", f"model.adapter={adapter}").visual == tokens


def test_what_the_facts_do_not_say_is_left_open():
    found = stage("llava_vicuna7b", "align", "model.adapter={card: q-former, args: {depth: 5}}")
    assert found.parameters["adapter"] is None
    assert found.trained is None
    assert not found.memory
    assert "adapter ?" in estimate.lines(found)[0]


def test_a_label_store():
    recipe = compose.load("quickstart")[0]
    found = stage("quickstart", "label")
    assert found.store == pytest.approx(4000 * 36 * recipe.stages["label"].keep * 4 / estimate.GIB)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_can_be_planned_offline(name, tmp_path):
    for node in graph.plan(compose.load(name), tmp_path):
        estimate.of(node)
