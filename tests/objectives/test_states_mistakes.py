"""What objectives of hidden states refuse, by `check`, before any weight loads."""

import pytest

KEY = "stages.align.objectives"
ALONE = ["stages.align.objectives.sea=~", "stages.align.reads=~", "stages.label=~"]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("{args: {layer: 5}}", "caption-contrast: layer is 5, and toy-llama has 4"),
        ("{args: {layer: -1}}", "caption-contrast: layer must be a whole number of at least 0, or last, got -1"),
        ("{args: {layer: first}}", "or last, got 'first'"),
        ("{args: {layers: 2}}", "takes no argument 'layers'"),
    ],
)
def test_check_refuses_layers_the_model_has_not(mmalign, tiny, value, what):
    said = mmalign("check", tiny, *ALONE, f"{KEY}.caption-contrast={value}")
    assert said.code == 2
    assert what in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("layer", [0, 4, "last"])
def test_check_takes_what_it_has(mmalign, tiny, layer):
    assert mmalign("check", tiny, *ALONE, f"{KEY}.caption-contrast={{args: {{layer: {layer}}}}}").code == 0


@pytest.mark.parametrize("name", ["logit-lens", "patch-words"])
def test_check_asks_for_labels(mmalign, tiny, name):
    said = mmalign("check", tiny, *ALONE, f"{KEY}.{name}=1.0")
    assert said.code == 2
    assert f"{name} needs labels" in said.err


def test_a_newcomer_is_told_what_each_pulls_towards_what(mmalign):
    said = mmalign("list", "objectives").out
    names = ["next-embedding", "logit-lens", "patch-words", "caption-contrast", "assignment", "visual-words"]
    for name in (*names, "vocabulary-regression"):
        (line,) = [line for line in said.splitlines() if name in line]
        assert "visual token" in line


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("visual-words={args: {head: none}}", "head must be one of learned, embeddings, got 'none'"),
        ("visual-words={args: {target: mean}}", "target must be one of learned, constant, got 'mean'"),
        ("vocabulary-regression={args: {distance: l1}}", "distance must be one of l2, cosine, got 'l1'"),
    ],
)
def test_check_refuses_settings_that_there_are_not(mmalign, tiny, value, what):
    said = mmalign("check", tiny, *ALONE, f"{KEY}.{value}")
    assert said.code == 2
    assert what in said.err
    assert "Traceback" not in said.err
