"""The shipped weights do what the toy world needs of them, and so do weights that its recipe makes from nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmalign.llms.causal import CausalLM
from mmalign.toyworld import render
from mmalign.toyworld.benchmarks import Lookup
from mmalign.toyworld.world import COLORS, SHAPES, SIDE, scene, stream
from mmalign.vision.hf import HFVision
from mmalign.vlm.model import VLM

from ..conftest import command

AFTER = ("label", "align", "tune", "score", "report")  # the stages that use what the first two make


@pytest.fixture(scope="module", params=["shipped", pytest.param("from nothing", marks=pytest.mark.slow)])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The checkpoint of each part."""
    if request.param == "shipped":
        return {"clip": "pkg:mmalign.toyworld/clip", "llama": "pkg:mmalign.toyworld/llama"}
    folder: Path = tmp_path_factory.mktemp("toyworld")
    outcome = command("run", "toyworld", *(f"stages.{name}=~" for name in AFTER), cwd=folder, timeout=3600)
    assert outcome.code == 0, outcome.err
    patterns = {"clip": "contrast-*/weights/vision", "llama": "language-*/weights/llm"}
    return {part: str(next(folder.glob(f"runs/{pattern}"))) for part, pattern in patterns.items()}


@pytest.fixture(scope="module")
def clip(trained: dict[str, str]) -> HFVision:
    return HFVision(trained["clip"], norm=True).float().eval()


def pixels(clip: HFVision, number: int) -> torch.Tensor:
    from PIL import Image

    noise = stream("test", number).bytes(SIDE * SIDE * 3)
    return clip.pixels(Image.fromarray(render.pixels(scene(0, "test", number, things=1), noise)))


@torch.no_grad()
def test_clip_knows_colors_and_shapes_of_images_it_has_not_seen(clip: HFVision):
    _, dense_BPJ = clip.both(torch.stack([pixels(clip, number) for number in range(100)]))
    things = [scene(0, "test", number, things=1).things[0] for number in range(100)]
    for words, true in ((COLORS, [t.color for t in things]), (SHAPES, [t.shape for t in things])):
        index_B = (dense_BPJ.mean(1) @ clip.words(list(words)).T).argmax(-1)
        assert np.mean([list(words)[index] == word for index, word in zip(index_B, true, strict=True)]) > 0.95


@torch.no_grad()
def test_clip_names_what_each_patch_shows(clip: HFVision):
    _, dense_BPJ = clip.both(torch.stack([pixels(clip, number) for number in range(50)]))
    cosine_BPW = torch.nn.functional.normalize(dense_BPJ, dim=-1) @ clip.words(list(COLORS)).T
    correct = []
    for number in range(50):
        truth = render.truth(scene(0, "test", number, things=1), clip.grid)
        nearest_P = [list(COLORS)[index] for index in cosine_BPW[number].argmax(-1).tolist()]
        correct += [word in words for word, words in zip(nearest_P, truth.words, strict=True) if len(words) == 3]
    assert np.mean(correct) > 0.9


@torch.no_grad()
def test_features_have_no_dimension_that_drowns_the_others(clip: HFVision):
    patches_BPC = clip(torch.stack([pixels(clip, number) for number in range(50)]))
    spread_C = patches_BPC.flatten(0, 1).std(0)
    assert spread_C.max() < 4 * spread_C.median()
    assert 0.5 < patches_BPC.square().mean().sqrt() < 2


def test_llama_passes_the_gate(trained: dict[str, str]):
    llm = CausalLM(trained["llama"]).float()
    quiz = Lookup(images=60)
    asked = VLM(None, None, llm).eval()
    answers = {question.id: text for question, text in asked.answers(quiz, quiz.questions(), 64)}
    assert quiz.score(answers).metrics["gate"] >= 90
