"""What a stage without memory could change, held against the estimate of the stage so changed."""

import pytest

from mmalign.plan import estimate, graph, relief
from mmalign.plan import read as compose

ENGINE = ["stages.tune.engine.checkpointing=false", "stages.tune.engine.zero=1", "stages.tune.engine.offload=false"]


def node(recipe, name, *words):
    return next(n for n in graph.plan(compose.load(recipe, words), "runs") if n.name == name)


def total(devices, *words):
    one = node("llava_vicuna7b", "tune", *ENGINE, *words)
    return estimate.of(one, devices).memory[f"ZeRO {one.stage.engine.zero}"]["total"]


CHANGES = {
    "engine.checkpointing: true": "stages.tune.engine.checkpointing=true",
    "engine.zero: 1 -> 2": "stages.tune.engine.zero=2",
    "engine.zero: 1 -> 3": "stages.tune.engine.zero=3",
    "engine.offload: true": "stages.tune.engine.offload=true",
    "micro_batch: 16 -> 8": "stages.tune.micro_batch=8",
    "precision: fp32 -> bf16": "stages.tune.precision=bf16",
}


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_each_proposal_has_the_estimate_of_the_stage_so_changed(devices, precision):
    own = [f"stages.tune.precision={precision}", "stages.tune.micro_batch=16"]
    before = total(devices, *own)
    after = {what: total(devices, *own, word) for what, word in CHANGES.items()}
    if devices == 1:  # nobody to share with
        after = {what: size for what, size in after.items() if "zero" not in what}
    saving = sorted((size, what) for what, size in after.items() if size < 0.99 * before)[: relief.SHOWN]
    gib = estimate.size_of
    want = [f"{what} ({gib(before)} -> {gib(size)} a device)" for size, what in saving]
    one = node("llava_vicuna7b", "tune", *ENGINE, *own)
    assert relief.told(one.stage, one.cards, devices) == ", or ".join(want)
    assert len(want) >= 3


@pytest.mark.parametrize(("micro", "fewer"), [(9, 3), (7, 1), (2, 1), (6, 3)])
def test_a_micro_batch_that_divides(micro, fewer):
    one = node("llava_vicuna7b", "tune", *ENGINE, f"stages.tune.micro_batch={micro}", f"stages.tune.batch={micro * 8}")
    assert f"micro_batch: {micro} -> {fewer} (" in relief.told(one.stage, one.cards)


def test_nothing_that_is_done_already():
    words = ["checkpointing=true", "zero=3", "offload=true"]
    words = [f"stages.tune.engine.{word}" for word in words] + ["stages.tune.micro_batch=1"]
    one = node("llava_vicuna7b", "tune", *words, "stages.tune.precision=bf16")
    assert relief.told(one.stage, one.cards, 8) == ""


def test_without_facts_there_are_no_numbers():
    one = node("llava_vicuna7b", "tune", *ENGINE, "stages.tune.micro_batch=4", "stages.tune.precision=bf16")
    one.cards["llm"].facts.clear()
    told = "engine.checkpointing: true, or engine.zero: 1 -> 2, or engine.zero: 1 -> 3, or engine.offload: true"
    assert relief.told(one.stage, one.cards, 2) == told


@pytest.mark.parametrize(("name", "what"), [("label", "batch: 64 -> 32"), ("score", "batch: 32 -> 16"), ("report", "")])
def test_other_stages(tiny, name, what):
    one = node(tiny, name)
    assert relief.told(one.stage, one.cards) == what
    assert relief.readers(one.stage) == ""


def test_the_threads_that_read(tiny):
    assert relief.readers(node(tiny, "align").stage) == "engine.workers: 1 -> 0"
    assert relief.readers(node(tiny, "align", "stages.align.engine.workers=0").stage) == ""
