"""Answers from packed passes against transformers' own generate, one question at a time; tokens must be equal."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from mmalign.adapters.mlp import MLP
from mmalign.benchmarks import Benchmark, Question
from mmalign.llms.causal import CausalLM
from mmalign.plan.cards import Registry
from mmalign.testing import small
from mmalign.toyworld.benchmarks import Attributes
from mmalign.vision.hf import HFVision
from mmalign.vlm.answering import Responder
from mmalign.vlm.model import VLM
from mmalign.vlm.prefix import Group
from tests import parts
from tests.vlm.test_model import picture

LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
SOME = {"use_sliding_window": True, "layer_types": LAYERS}
WINDOW = 20  # tokens; an image alone is more
# name: (family, what its windows are); every family the registry names, as it comes and with windows if it can have any
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in small.LLMS},
    "mistral, windows": ("mistral", {"sliding_window": WINDOW}),
    "phi3, windows": ("phi3", {"sliding_window": WINDOW}),
    **{f"{family}, windows": (family, SOME | {"sliding_window": WINDOW}) for family in ("qwen2", "qwen3")},
    **{f"{family}, windows": (family, {"sliding_window": WINDOW}) for family in ("gemma2", "gemma3_text")},
}
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

    def make(name):
        (family, windows), folder = FAMILIES[name], tmp_path_factory.mktemp("llm")
        small.llm(family, folder, kind="sentencepiece", **windows)
        torch.manual_seed(1)
        eye, mouth = HFVision(str(clip)), CausalLM(str(folder))
        for name, parameter in mouth.named_parameters():  # sharper than as initialised, so that answers differ
            if parameter.dim() > 1 and "embed" not in name:
                parameter.data.mul_(4)
        return tokens_told(VLM(eye, MLP(eye.dim, mouth.dim, eye.grid), mouth).eval())

    return make


def tokens_told(model: VLM) -> VLM:
    """Answers as their token ids: two texts may be equal and their tokens not."""
    chat = model.llm.chat
    chat.text = lambda ids: " ".join(str(one) for one in ids if one not in chat.ends)
    return model


def ends_of_some(answers: Sequence[str]) -> int:
    """A token behind the first of some answers and in none of some others: whoever ends at it ends early, the others
    go on. Which one depends on the weights, and those on the machine that draws them."""
    said = [[int(token) for token in answer.split()] for answer in answers]
    ends = {token for tokens in said for token in tokens[1:]}
    return min(token for token in ends if any(token not in tokens for tokens in said))


@torch.no_grad()
def alone(model, bench, question):
    """transformers' generate on one question: batch 1, its own image, its own prefill."""
    ids = Responder(model, bench)._chat(question, 0 if question.image is None else math.prod(model.grid))
    embeds = model.llm.embed(torch.tensor([[0 if i == model.llm.chat.mark else i for i in ids]]))
    if question.image is not None:
        at = torch.tensor([ids]) == model.llm.chat.mark
        embeds[at] = model.visual_tokens(bench.image(question.image))[0]
    made = model.llm.lm.generate(
        inputs_embeds=embeds, attention_mask=torch.ones(1, len(ids)).long(), do_sample=False,
        max_new_tokens=bench.max_new_tokens, eos_token_id=list(model.llm.chat.ends), pad_token_id=model.llm.chat.pad,
    )  # fmt: skip
    return model.llm.chat.text(made[0].tolist())


@pytest.mark.parametrize("each", [6, 18])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_greedy_answers_equal_batch_1_generate(build, family, each):
    model, bench = build(family), Quiz(images=6 // each + 1, each=each)
    model.llm.chat.ends.add(ends_of_some([alone(model, bench, question) for question in bench.questions()]))
    found = {q.id: text for q, text in model.answers(bench, bench.questions(), batch=20)}
    assert found == {q.id: alone(model, bench, q) for q in bench.questions()}
    assert len(set(found.values())) > 1
    assert len({len(text.split()) for text in found.values()}) > 1  # some ended, some went on


def test_the_windows_are_shorter_than_the_prompts_and_are_felt(build):
    """Else the windows above would test nothing."""
    windowed = [name for name in FAMILIES if name.endswith("windows")]
    for name in windowed:
        model, bench = build(name), Quiz(images=1, each=1)
        ids = Responder(model, bench)._chat(bench.asked[0], math.prod(model.grid))
        assert len(ids) > 2 * WINDOW
        embeds = model.llm.embed(torch.tensor([[0 if one == model.llm.chat.mark else one for one in ids]]))
        with torch.no_grad():
            near = model.llm.lm(inputs_embeds=embeds).logits[0, -1]
            model.llm.lm.config.sliding_window = 2 * len(ids)
            far = model.llm.lm(inputs_embeds=embeds).logits[0, -1]
        assert not torch.allclose(near, far), name


# what a card's name begins with: the family of its class
NAMED = {
    "vicuna": "llama", "llama3": "llama", "mobilellama": "llama", "smollm2": "llama", "toy": "llama",
    "mistral": "mistral", "gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text", "phi": "phi", "phi3": "phi3",
    "qwen2": "qwen2", "qwen3": "qwen3",
}  # fmt: skip


def test_every_family_of_the_registry_is_asked():
    assert {NAMED[name.split("-")[0]] for name in Registry().names("llms")} <= FAMILIES.keys()


@pytest.mark.parametrize("each", [6, 18])
def test_greedy_answers_of_the_toy_model_equal_batch_1_generate(each):
    torch.manual_seed(0)
    eye, mouth = HFVision("pkg:mmalign.toyworld/clip").float(), CausalLM("pkg:mmalign.toyworld/llama").float()
    model = tokens_told(VLM(eye, MLP(eye.dim, mouth.dim, eye.grid), mouth).eval())
    bench = Scenes(images=2, each=each)
    found = {q.id: text for q, text in model.answers(bench, bench.questions(), batch=24)}
    assert found == {q.id: alone(model, bench, q) for q in bench.questions()}
    assert len(set(found.values())) > 1


class Scenes(Attributes):
    """The toy world's own questions, `each` about each of its first scenes, answered in free text."""

    max_new_tokens = 6

    def __init__(self, images, each):
        super().__init__(images=40)
        texts = list(dict.fromkeys(item.question.text for item in self.items))[:each]
        self.asked = [Question(f"{n}-{m}", text, n) for n in range(images) for m, text in enumerate(texts)]

    def questions(self) -> Sequence[Question]:
        return self.asked


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
            ids, tail = (
                Responder(model, bench)._chat(question, 25 if question.image is not None else 0),
                model.llm.chat.answer(option),
            )
            whole = torch.tensor([ids + tail])
            at = whole == model.llm.chat.mark
            with torch.no_grad():
                embeds = model.llm.embed(whole.masked_fill(at, 0))
                if question.image is not None:
                    embeds[at] = model.visual_tokens(bench.image(question.image))[0]
                logp = model.llm.lm(inputs_embeds=embeds).logits[0].log_softmax(-1)
            scores.append(sum(float(logp[len(ids) + n - 1, token]) for n, token in enumerate(tail)))
        assert found[question.id] == options[max(range(len(options)), key=scores.__getitem__)]


def test_a_question_asked_twice_is_answered_once(build):
    model, bench = build("llama"), Quiz(images=1, each=2)
    twin = Question("twin", bench.asked[0].text, bench.asked[0].image)
    seen = []
    forward = model.llm.lm.base_model.forward
    model.llm.lm.base_model.forward = lambda **given: seen.append(given["inputs_embeds"].shape) or forward(**given)
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
            loss = model.llm.lm(input_ids=ids, labels=ids).loss
        total, count = total + float(loss) * (ids.shape[1] - 1), count + ids.shape[1] - 1
    assert model.perplexity(texts) == pytest.approx(torch.tensor(total / count).exp().item(), rel=1e-5)
