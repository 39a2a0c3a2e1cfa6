"""What objectives of another encoder's features refuse, by `check`, before any weight loads."""

import pytest

from tests import parts

ALIGN = "stages.align."
KEY = f"{ALIGN}objectives."
ALONE = [f"{KEY}sea=~", f"{ALIGN}reads=~", "stages.label=~", "stages.tune=~", "stages.score=~", "stages.report=~"]


@pytest.mark.parametrize(
    ("setting", "what", "at"),
    [
        ("representation={args: {encoder: toy-clop}}", "no vision card named 'toy-clop'", "toy-clip"),
        ("representation={args: {encoder: toy-words}}", "no vision card named 'toy-words'", "args.encoder"),
        ("representation={args: {encoder: null}}", "representation has an encoder's features for targets, and names no",
         "args: {encoder: NAME}"),
        ("reconstruction={args: {encoder: ./tiny.yaml}}", "tiny.yaml' is no card's name", "args: {encoder: NAME}"),
        ("representation={args: {encoder: toy-clip, layer: 5}}", "representation: layer is 5, and toy-llama has 4",
         "objectives.representation.args.layer"),
        ("representation={args: {encoder: toy-clip, layer: first}}", "or last, got 'first'", "args.layer"),
        ("representation={args: {encoder: toy-clip, width: 0}}", "width is a width of 1 or more, not 0", "args.width"),
        ("reconstruction={args: {encoder: toy-clip, layer: 2}}", "takes no argument 'layer'", "reconstruction"),
        ("next-embedding={args: {encoder: toy-clip}}", "takes no argument 'encoder'", "next-embedding"),
    ],
)  # fmt: skip
def test_check_says_what_is_wrong(mmalign, tiny, setting, what, at):
    said = mmalign("check", tiny, *ALONE, f"{KEY}{setting}")
    assert said.code == 2
    assert what in said.err
    assert at in said.err
    assert "Traceback" not in said.err


def test_check_refuses_an_adapter_without_a_grid(mmalign, tiny):
    own = f"{KEY}representation={{args: {{encoder: toy-clip}}}}"
    said = mmalign("check", tiny, *ALONE, own, "model.adapter={card: average-pool, args: {factor: 2}}")
    assert said.code == 2
    assert "representation supervises single patches, and average-pool does not keep the grid" in said.err


def test_check_misses_the_weights_of_a_target_whatever_stage_trains_an_encoder(mmalign, tiny):
    """Another stage's weights are the model's encoder's, not those of the card that targets are of."""
    eye = parts.clip(tiny.parent / "eye")
    (eye / "model.safetensors").unlink()
    (tiny.parent / "shelf" / "vision").mkdir(parents=True)
    card = f"summary: x\ntarget: mmalign.vision.hf.HFVision\nargs: {{checkpoint: {eye}}}\n"
    (tiny.parent / "shelf" / "vision" / "eye.yaml").write_text(card)
    own = "stages.tune.objectives.representation={args: {encoder: eye}}"
    words = [f"{KEY}sea=~", f"{ALIGN}reads=~", "stages.label=~", f"{ALIGN}trains=[vision, adapter]", own]
    said = mmalign("check", tiny, *words, "registry=[./shelf]")
    assert said.code == 2
    assert f"stage 'tune': {eye}, the checkpoint of eye, has no weights" in said.err


def test_a_newcomer_is_told_what_each_pulls_towards_what(mmalign):
    said = mmalign("list", "objectives").out
    for name in ("representation", "reconstruction"):
        (line,) = [line for line in said.splitlines() if line.split()[:1] == [name]]
        assert "visual token" in line
        assert "encoder" in line
