"""Answers from packed passes against transformers' own generate, one question at a time; tokens must be equal."""

from collections.abc import Sequence

import pytest
import torch

from mmalign.adapters.mlp import MLP
from mmalign.answering import Asked
from mmalign.benchmarks import Benchmark, Question
from mmalign.llms.causal import CausalLM
from mmalign.packed import Group
from mmalign.vision.hf import HFVision
from tests import parts
from tests.test_model import picture

LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES = {
    **parts.FAMILIES,
    "gemma2": {"head_dim": 8, "layer_types": LAYERS, "sliding_window": 24},
    "gemma3_text": {"head_dim": 8, "layer_types": LAYERS, "sliding_window": 24},
    "qwen3": {"head_dim": 8},
}
FAMILIES["mistral"] = {"sliding_window": 40}
WORDS = "what colour is the star red blue ring left of large Yes No describe this image 12 345".split()  # noqa: SIM905


class Quiz(Benchmark):
    """Random questions about a few images, of very different lengths; some without an image."""

    max_new_tokens = 6

    def __init__(self, images=3, each=6, options=()):
        g = torch.Generator().manual_seed(0)
        self.asked = []
        for image in [*range(images), None]:
            for n in range(each):
                length = int(torch.randint(1, 12, (1,), generator=g))
                words = [WORDS[int(i)] for i in torch.randint(len(WORDS), (length,), generator=g)]
                self.asked.append(Question(f"{image}-{n}", " ".join(words), image, options))

    def questions(self) -> Sequence[Question]:
        return self.asked

    def image(self, reference):
        return picture(reference)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    clip = parts.clip(tmp_path_factory.mktemp("clip"))

    def make(family):
        folder = tmp_path_factory.mktemp(family)
        parts.FAMILIES.setdefault(family, {})
        parts.llm(family, folder, kind="sentencepiece", **FAMILIES[family])
        torch.manual_seed(1)
        eye, mouth = HFVision(str(clip)), CausalLM(str(folder))
        for name, parameter in mouth.named_parameters():  # sharper than as initialised, so that answers differ
            if parameter.dim() > 1 and "embed" not in name:
                parameter.data.mul_(4)
        return Asked(eye, MLP(eye.dim, mouth.dim, eye.grid), mouth, torch.device("cpu"))

    return make


@torch.no_grad()
def alone(model, bench, question):
    """transformers' generate on one question: batch 1, its own image, its own prefill."""
    ids = model._ids(question, 25 if question.image is not None else 0)
    embeds = model.llm.embed(torch.tensor([[0 if i == model.llm.chat.mark else i for i in ids]]))
    if question.image is not None:
        at = torch.tensor([ids]) == model.llm.chat.mark
        embeds[at] = model.visual([bench.image(question.image)])[0]
    made = model.lm.generate(
        inputs_embeds=embeds, attention_mask=torch.ones(1, len(ids)).long(), do_sample=False,
        max_new_tokens=bench.max_new_tokens, eos_token_id=list(model.llm.chat.ends), pad_token_id=model.llm.chat.pad,
    )  # fmt: skip
    return model.llm.chat.text(made[0].tolist())


@pytest.mark.parametrize("each", [1, 6, 18])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_greedy_answers_equal_batch_1_generate(build, family, each):
    if each == 18 and family not in ("llama", "gemma2"):
        pytest.skip("one family of each kind is enough at 18 questions an image")
    model, bench = build(family), Quiz(each=each)
    found = {q.id: text for q, text in model.answers(bench, bench.questions(), batch=20)}
    assert found == {q.id: alone(model, bench, q) for q in bench.questions()}
    assert len(set(found.values())) > 1


@pytest.mark.parametrize("batch", [1, 4, 50])
def test_the_size_of_a_pass_changes_nothing(build, batch):
    model, bench = build("llama"), Quiz()
    want = {q.id: text for q, text in model.answers(bench, bench.questions(), batch=1)}
    assert {q.id: text for q, text in model.answers(bench, bench.questions(), batch=batch)} == want


@pytest.mark.parametrize("options", [("Yes", "No"), ("red", "large blue ring", "internationalization")])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_likeliest_option_is_that_of_one_forward_pass_each(build, family, options):
    model, bench = build(family), Quiz(options=options)
    found = {q.id: text for q, text in model.answers(bench, bench.questions(), batch=7)}
    for question in bench.questions():
        scores = []
        for option in options:
            ids, tail = model._ids(question, 25 if question.image is not None else 0), model.llm.chat.answer(option)
            whole = torch.tensor([ids + tail])
            at = whole == model.llm.chat.mark
            with torch.no_grad():
                embeds = model.llm.embed(whole.masked_fill(at, 0))
                if question.image is not None:
                    embeds[at] = model.visual([bench.image(question.image)])[0]
                logp = model.lm(inputs_embeds=embeds).logits[0].log_softmax(-1)
            scores.append(sum(float(logp[len(ids) + n - 1, token]) for n, token in enumerate(tail)))
        assert found[question.id] == options[max(range(len(options)), key=scores.__getitem__)]


def test_a_question_asked_twice_is_answered_once(build):
    model, bench = build("llama"), Quiz(images=1, each=2)
    twin = Question("twin", bench.asked[0].text, bench.asked[0].image)
    seen = []
    forward = model.lm.base_model.forward
    model.lm.base_model.forward = lambda **given: seen.append(given["inputs_embeds"].shape) or forward(**given)
    alone_ = {q.id: t for q, t in model.answers(bench, bench.questions(), batch=9)}
    passes = list(seen)
    seen.clear()
    both = {q.id: t for q, t in model.answers(bench, [*bench.questions(), twin], batch=9)}
    assert seen == passes
    assert both == {**alone_, "twin": alone_[bench.asked[0].id]}


def test_a_question_whose_name_is_an_images_has_no_image(build):
    model, bench = build("llama"), Quiz(images=0, each=0)
    bench.asked = [Question("a", "what is this", 7), Question("7", "what is this"), Question("b", "red or blue", 7)]
    bench.asked.append(Question(7, "what colour is the star"))
    found = {q.id: text for q, text in model.answers(bench, bench.questions(), batch=9)}
    assert found == {q.id: alone(model, bench, q) for q in bench.questions()}


def test_groups_share_what_is_common():
    (group,) = Group.of([[1, 9, 9, 2, 3], [1, 9, 9, 2, 4, 5], [1, 9, 9, 2]], None, mark=9)
    assert group.prefix == [1, 9, 9]
    assert group.rests == [[2, 3], [2, 4, 5], [2]]
    apart = Group.of([[1, 9, 2], [3, 9, 2]], torch.zeros(1, 4), mark=9)
    assert [g.prefix for g in apart] == [[1, 9], [3, 9]]


def test_perplexity_is_exp_of_the_mean_loss(build):
    model = build("llama")
    texts = ["the red star", "a large blue ring is left of the star", "Yes"]
    total = count = 0.0
    for text in texts:
        ids = torch.tensor([model.llm.chat.plain(text)])
        with torch.no_grad():
            loss = model.lm(input_ids=ids, labels=ids).loss
        total, count = total + float(loss) * (ids.shape[1] - 1), count + ids.shape[1] - 1
    assert model.perplexity(texts) == pytest.approx(torch.tensor(total / count).exp().item(), rel=1e-5)
