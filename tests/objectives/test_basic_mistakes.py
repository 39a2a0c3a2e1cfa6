"""What BASIC refuses: by `check`, before any weight loads, or at the first step; what, where and what to try."""

import pytest

from mmalign.errors import CheckError, StageError
from mmalign.llms import watch
from mmalign.objectives.basic import Direction
from tests.objectives.test_basic import batch_of, build, folders  # noqa: F401

KEY = "stages.align.objectives.basic-direction"
ALONE = ["stages.align.objectives.sea=~", "stages.align.reads=~", "stages.label=~"]
AT_LEAST = "basic-direction: layers must be a whole number of at least 1"
POOLED = "summary: halves the grid\ntarget: mmalign.adapters.squares.AveragePool\n"


@pytest.mark.parametrize(
    ("value", "what", "fix"),
    [
        ("{args: {layers: 5}}", "layers is 5, and toy-llama has 4", "layers: 1 to 4; the paper takes half, 2"),
        ("{args: {layers: 0}}", f"{AT_LEAST}, got 0", "layers: 1 to all of the language model's"),
        ("{args: {layers: -1}}", f"{AT_LEAST}, got -1", "layers: 1 to all"),
        ("{args: {layers: half}}", "layers must be a whole number or null, got 'half'", "what the class takes"),
        ("{args: {layers: 2.5}}", "layers must be a whole number or null, got 2.5", "what the class takes"),
        ("{args: {layer: 2}}", "takes no argument 'layer'", "did you mean 'layers'?"),
    ],
)  # fmt: skip
def test_check_refuses_layers_the_model_has_not(mmalign, tiny, value, what, fix):
    said = mmalign("check", tiny, *ALONE, f"{KEY}={value}")
    assert said.code == 2
    assert what in said.err
    assert f"command line  {KEY}.args" in said.err
    assert fix in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("layers", [1, 4, "~"])
def test_check_takes_what_it_has(mmalign, tiny, layers):
    assert mmalign("check", tiny, *ALONE, f"{KEY}={{args: {{layers: {layers}}}}}").code == 0


def test_check_refuses_an_adapter_that_does_not_keep_the_grid(mmalign, tiny, here):
    (here / "shelf" / "adapters").mkdir(parents=True)
    (here / "shelf" / "adapters" / "pooled.yaml").write_text(POOLED)
    said = mmalign("check", tiny, *ALONE, f"{KEY}=1.0", "registry=[./shelf]", "model.adapter=pooled")
    assert said.code == 2
    assert "basic-direction supervises single patches, and pooled does not keep the grid" in said.err
    assert "an adapter with keeps_grid, such as mlp2x-gelu" in said.err


def test_an_llm_without_a_list_of_layers_is_refused_before_the_first_step(folders):  # noqa: F811
    model = build(folders, "llama", a=Direction())
    model.vlm.llm.lm.base_model.layers = None
    with pytest.raises(CheckError, match="LlamaForCausalLM has no list of decoder layers") as caught:
        model.prepare()
    assert (caught.value.at, caught.value.fix) == ("model.llm", "a Llama, Mistral, Gemma, Phi-3 or Qwen model")
    assert watch.layers(build(folders, "phi3").vlm.llm.lm)


def test_an_image_behind_all_text_is_refused_at_the_step(folders):  # noqa: F811
    model = build(folders, "llama", a=Direction())
    batch = batch_of(model, [0])
    last = int((batch.ids_RS[0] == model.vlm.llm.chat.mark).nonzero()[-1])
    batch.mask_RS[0, last + 1 :] = 0
    with pytest.raises(StageError, match="an image has no text behind it") as caught:
        model(batch)
    assert caught.value.at == "one of row-0"
    assert caught.value.fix == "the image before the text, or attention: equal"
    equal = build(folders, "llama", a=Direction(attention="equal"))
    assert equal(batch)[0]["a"].isfinite()
