"""MMLU asked of a model: the likeliest letter, against one plain forward pass for every option."""

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmalign.benchmarks.mmlu import MMLU, OPTIONS
from mmalign.llms.causal import CausalLM
from mmalign.vlm.answering import Responder
from mmalign.vlm.likelihood import likelihoods
from mmalign.vlm.model import VLM
from mmalign.vlm.prefix import Group
from tests import parts

SUBJECTS = ("college_physics", "virology")
WORDS = "star ring red blue large left photograph ice cream Yes No 12 345 USER kettle".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def exams(tmp_path_factory) -> Path:
    """Five worked questions and four to ask, in each of two subjects; of very different lengths."""
    folder, g = tmp_path_factory.mktemp("mmlu"), torch.Generator().manual_seed(3)

    def words(most: int) -> str:
        many = int(torch.randint(1, most, (1,), generator=g))
        return " ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (many,), generator=g))

    for part, many in (("dev", 5), ("test", 4)):
        (folder / part).mkdir()
        for subject in SUBJECTS:
            with open(folder / part / f"{subject}_{part}.csv", "w", newline="") as out:
                rows = [[f"  {words(20)}?", *(words(4) for _ in range(4)), "ABCD"[n % 4]] for n in range(many)]
                csv.writer(out).writerows(rows)
    return folder


@pytest.fixture(scope="module", params=[("sentencepiece", True), ("bytelevel", True), ("bytelevel", None)])
def model(request, tmp_path_factory):
    """`begin`: what its plain texts stand behind; its tokenizer adds nothing by itself, a card may ask for it."""
    kind, bos = request.param
    folder = parts.llm("llama", tmp_path_factory.mktemp(kind), kind=kind, seed=5)
    mouth = CausalLM(str(folder), bos=bos)
    for name, parameter in mouth.named_parameters():  # attention counts for much, so that answers differ
        if "self_attn" in name:
            parameter.data.mul_(30)
    made = VLM(None, None, mouth).eval()
    made.kind, made.begin = kind, [mouth.chat.tokenizer.bos_token_id] if bos else []
    return made


@pytest.fixture
def context(model, monkeypatch):
    """context(tokens): how many the language model is said to read."""
    return lambda tokens: monkeypatch.setattr(model.llm, "context", tokens)


def one_by_one(model, text: str, room: int = 10_000) -> str:
    """The option whose tokens, behind the whole prompt, have the highest log-probability; the tokenizer's own words."""
    scores = plain_scores(model, text, room)
    return OPTIONS[max(range(len(OPTIONS)), key=scores.__getitem__)]


@torch.no_grad()
def plain_scores(model, text: str, room: int = 10_000) -> list[float]:
    """The log-probability of each option, by transformers' model alone."""
    spell, scores = model.llm.chat.tokenizer, []
    begin = model.begin
    alone = begin + spell(text, add_special_tokens=False)["input_ids"]
    for option in OPTIONS:
        both = begin + spell(text + option, add_special_tokens=False)["input_ids"]
        tail = both[len(alone) :]
        ids = torch.tensor([(alone + tail)[-(room + 1) :]])
        logp_SV = model.llm.lm(input_ids=ids).logits[0].log_softmax(-1)
        at = ids.shape[1] - len(tail)
        scores.append(sum(float(logp_SV[at + n - 1, token]) for n, token in enumerate(tail)))
    return scores


def answers(model, bench, batch=4):
    return {question.id: text for question, text in model.answers(bench, bench.questions(), batch)}


@pytest.mark.parametrize(("style", "batch"), [("hendrycks", 3), ("harness", 1), ("harness", 32)])
def test_letters_are_those_of_one_forward_pass_each(model, exams, context, style, batch):
    context(4096)
    bench = MMLU(str(exams), style=style)
    found = answers(model, bench, batch)
    assert found == {name: one_by_one(model, bench.prompt(name)) for name in bench.truth}
    assert len(set(found.values())) > 1 or model.kind == "sentencepiece"  # which has only some of the letters
    assert bench.score(found).counts["unparsable"] == 0


@torch.no_grad()
def test_log_probabilities_are_those_of_plain_transformers(model, exams, context):
    """Behind the begin token and without one, which says something else."""
    context(4096)
    bench = MMLU(str(exams))
    question = bench.questions()[0]
    ids, options = Responder(model, bench)._plain(question)
    ((scored),) = likelihoods(model.llm, Group.of([ids], None, model.llm.chat.mark), [options])
    assert [logp for logp, _ in scored] == pytest.approx(plain_scores(model, question.text), abs=1e-4)
    other = SimpleNamespace(llm=model.llm, begin=[] if model.begin else [model.llm.chat.tokenizer.bos_token_id])
    assert [logp for logp, _ in scored] != pytest.approx(plain_scores(other, question.text), abs=1e-4)


def test_no_chat_template_and_at_most_one_begin_token(model, exams, context):
    context(4096)
    bench = MMLU(str(exams))
    seen = []
    ids, _ = Responder(model, bench)._plain(bench.questions()[0])
    spelled = model.llm.chat.tokenizer.decode(ids[len(model.begin) :])
    assert ids[: len(model.begin)] == model.begin
    assert ids.count(model.llm.chat.tokenizer.bos_token_id) == len(model.begin)
    assert "ASSISTANT" not in spelled
    assert spelled.endswith("Answer:")
    forward = model.llm.lm.base_model.forward
    model.llm.lm.base_model.forward = lambda **given: seen.append(given["inputs_embeds"].shape[:2]) or forward(**given)
    answers(model, bench, 6)
    del model.llm.lm.base_model.forward
    alone = sum(len(Responder(model, bench)._plain(question)[0]) for question in bench.questions())
    assert [shape[0] for shape in seen] == [1, 1]  # one pass a subject: its examples are read once
    assert sum(shape[1] for shape in seen) < 0.75 * alone


def test_what_does_not_fit_loses_examples_as_in_hendrycks_code(model, exams, context):
    bench = MMLU(str(exams), style="hendrycks")
    questions = bench.questions()
    _, options = Responder(model, bench)._plain(questions[0])
    for question in questions[:4]:
        spelled = [model.llm.chat.plain(bench.prompt(question.id, shots)) for shots in range(6)]
        for shots in range(6):
            context(len(spelled[shots]) + max(map(len, options)) - 1)
            fits = [ids for ids in spelled if len(ids) <= len(spelled[shots])]
            assert Responder(model, bench)._plain(question)[0] == fits[-1]


def test_what_does_not_fit_is_cut_at_its_beginning_as_in_the_harness(model, exams, context):
    context(180)
    bench = MMLU(str(exams), style="harness")
    assert answers(model, bench) == {name: one_by_one(model, bench.prompt(name), 180) for name in bench.truth}
    ids, options = Responder(model, bench)._plain(bench.questions()[0])
    assert len(ids) + max(map(len, options)) == 181
