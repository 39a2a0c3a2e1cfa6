"""What is exported answers as the model did, in plain transformers and in a process without mmalign."""

import json
import subprocess
import sys

import pytest
import torch

from mmalign import small
from mmalign.adapters.mlp import MLP
from mmalign.answering import Asked
from mmalign.benchmarks import Question
from mmalign.cards import Card
from mmalign.hub import MMAlignModel
from mmalign.llms.causal import CausalLM
from mmalign.stages import export
from mmalign.stages.build import Parts
from mmalign.vision.hf import HFVision
from tests import parts
from tests.test_model import picture
from tests.test_packed import Quiz

VISION = {"clip": parts.clip, "siglip": parts.siglip, "dinov2": parts.dinov2}

PLAIN = """
import json, sys, torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration
folder, picture, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
processor = AutoProcessor.from_pretrained(folder)
said = []
for text in texts:
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
    given = processor(images=Image.open(picture), text=prompt, add_special_tokens=False, return_tensors="pt")
    made = model.generate(**given, max_new_tokens=6, do_sample=False)
    ids = made[0, given["input_ids"].shape[1]:]
    said.append(processor.tokenizer.decode(ids, skip_special_tokens=True).strip())
assert "mmalign" not in sys.modules
print("SAID" + json.dumps(said))
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    folders = {}

    def folder(kind, make, **more):
        if kind not in folders:
            folders[kind] = make(tmp_path_factory.mktemp(kind.replace("/", "")), **more)
        return str(folders[kind])

    def make(vision="clip", family="llama", depth=2, pad=False):
        torch.manual_seed(2)
        eye = HFVision(folder(vision, VISION[vision]), pad=pad)
        mouth = CausalLM(folder(family, lambda place: parts.llm(family, place)))
        for name, parameter in mouth.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                parameter.data.mul_(3)
        adapter = MLP(eye.dim, mouth.dim, eye.grid, depth)
        return Parts(eye.eval(), adapter.eval(), mouth.eval(), {})

    return make


@pytest.mark.parametrize("family", [family for family in small.LLMS if family != "gemma2"])
@pytest.mark.parametrize("vision", list(VISION))
@pytest.mark.parametrize("depth", [1, 2])
def test_plain_transformers_gives_the_same_logits(build, tmp_path, vision, family, depth):
    made = export.export(build(vision, family, depth), None, tmp_path / "out")
    assert made.difference < 1e-4
    assert not made.why_not


@pytest.mark.parametrize(("vision", "family", "pad"), [("clip", "llama", True), ("siglip", "gemma", False)])
def test_plain_transformers_generates_the_same_answers(build, tmp_path, vision, family, pad):
    given = build(vision, family, pad=pad)
    texts = ["What colour is the star?", "Describe this image.", "Yes or No?"]
    shown = picture(3, size=40)
    shown.resize((50, 40)).save(tmp_path / "it.png")
    bench = Quiz()
    bench.image = lambda _reference: __import__("PIL.Image").Image.open(tmp_path / "it.png").convert("RGB")
    asked = Asked(given.vision, given.adapter, given.llm, torch.device("cpu"))
    questions = [Question(str(n), text, 0) for n, text in enumerate(texts)]
    ours = {q.id: text for q, text in asked.answers(bench, questions, batch=4)}
    export.export(given, None, tmp_path / "out")
    command = [sys.executable, "-c", PLAIN, str(tmp_path / "out"), str(tmp_path / "it.png"), json.dumps(texts)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.split("SAID")[1])
    assert said == [ours[str(n)] for n in range(len(texts))]


def test_what_llava_cannot_hold_loads_where_mmalign_is(build, tmp_path):
    given = build(depth=3)
    cards = {
        "vision": Card("", "mmalign.vision.hf.HFVision", {"checkpoint": given.vision.checkpoint}),
        "adapter": Card("", "mmalign.adapters.mlp.MLP", {"depth": 3}),
        "llm": Card("", "mmalign.llms.causal.CausalLM", {"checkpoint": given.llm.checkpoint}),
    }
    task = type("Task", (), {"cards": cards})
    made = export.export(given, task, tmp_path / "out")
    assert made.difference is None
    assert made.why_not == "its adapter has 3 linear layers"
    loaded = MMAlignModel.from_pretrained(tmp_path / "out")
    for name, value in given.adapter.state_dict().items():
        assert torch.equal(loaded.adapter.state_dict()[name], value)
    asked = Asked(given.vision, given.adapter, given.llm, torch.device("cpu"))
    bench = Quiz(images=1, each=1)
    ours = {q.id: text for q, text in asked.answers(bench, bench.questions()[:1], batch=1)}
    question = bench.questions()[0]
    assert loaded.generate(question.text, bench.image(question.image), max_new_tokens=6) == [ours[question.id]]


def test_capped_logits_are_beyond_llava(build):
    assert export.why_not(build(family="gemma2")) == "its language model caps its logits, which Llava's head does not"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: setattr(p.vision, "norm", True), "final norm"),
        (lambda p: setattr(p, "adapter", torch.nn.Identity()), "its adapter is a Identity"),
        (lambda p: setattr(p, "llm", torch.nn.Identity()), "its language model is a Identity"),
        (lambda p: setattr(p, "vision", torch.nn.Identity()), "its encoder is a Identity"),
    ],
)
def test_why_not(build, change, reason):
    given = build()
    assert export.why_not(given) == ""
    change(given)
    assert reason in export.why_not(given)
