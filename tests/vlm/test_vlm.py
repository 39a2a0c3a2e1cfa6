"""The model as somebody holds it: asked, told to go on, looked into; and nothing of it changed by looking."""

import math

import pytest
import torch
from torch.nn import functional as F

import mmalign
from mmalign.benchmarks import Benchmark, Question
from mmalign.data import MARK, Turn
from mmalign.errors import CheckError, DataError, StageError
from mmalign.toyworld.data import Captions, VisualChat
from mmalign.training.batches import BadSamples, Collate
from mmalign.vlm.model import VLM
from tests.cli.conftest import finished
from tests.conftest import TINY

QUESTIONS = ["what is this ?", "is there a red star ?", "what color is the circle ?"]
SHORT = 5  # tokens of an answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("kept")
    (place / "tiny.yaml").write_text(TINY)
    return finished(place / "runs", place / "tiny.yaml")


@pytest.fixture
def model(folder):
    return mmalign.load(folder)


@pytest.fixture(scope="module")
def images():
    return [Captions(8).image(number) for number in range(8)]


def state(model):
    """Modes and what learns, of every module and parameter."""
    modes = {name: module.training for name, module in model.named_modules()}
    return modes, {name: p.requires_grad for name, p in model.named_parameters()}


# Asked


def test_one_question_and_many(model, images):
    """A str for a str, a list for a list; each as if it were asked alone."""
    alone = [model.ask(question, images[0], max_new_tokens=SHORT) for question in QUESTIONS]
    assert all(isinstance(reply, str) for reply in alone)
    assert model.ask(QUESTIONS, images[0], max_new_tokens=SHORT) == alone
    assert model.ask(QUESTIONS[:1], images[0], max_new_tokens=SHORT) == alone[:1]


def test_one_image_for_each_question(model, images):
    each = [model.ask(q, image, max_new_tokens=SHORT) for q, image in zip(QUESTIONS, images, strict=False)]
    assert model.ask(QUESTIONS, images[:3], max_new_tokens=SHORT) == each
    assert model.ask(QUESTIONS, [images[0]] * 3, max_new_tokens=SHORT) == model.ask(
        QUESTIONS, images[0], max_new_tokens=SHORT
    )
    assert model.ask(QUESTIONS[0], images[:1], max_new_tokens=SHORT) == each[0]


def test_the_same_question_about_several_images(model, images):
    each = [model.ask(QUESTIONS[0], image, max_new_tokens=SHORT) for image in images]
    assert model.ask([QUESTIONS[0]] * len(images), images, max_new_tokens=SHORT) == each
    assert len(set(each)) > 1


def test_without_an_image(model):
    alone = [model.ask(question, max_new_tokens=SHORT) for question in QUESTIONS]
    assert model.ask(QUESTIONS, max_new_tokens=SHORT) == alone
    assert model.ask([], max_new_tokens=SHORT) == []


class Quiz(Benchmark):
    max_new_tokens = SHORT

    def __init__(self, images):
        self.images = images

    def questions(self):
        return [Question(f"{n}", q, n) for n, q in enumerate(QUESTIONS)]

    def image(self, reference):
        return self.images[reference]


def test_it_answers_as_eval_does(model, images):
    bench = Quiz(images)
    evaluated = {question.id: text for question, text in model.answers(bench, bench.questions(), batch=2)}
    assert model.ask(QUESTIONS, images[:3], max_new_tokens=SHORT) == [evaluated[str(n)] for n in range(3)]


@pytest.mark.parametrize(("questions", "count"), [(QUESTIONS, 2), (QUESTIONS, 4), (QUESTIONS[0], 2)])
def test_questions_and_images_that_do_not_pair(model, images, questions, count):
    what = f"{1 if isinstance(questions, str) else 3} questions and {count} images"
    with pytest.raises(CheckError, match=what) as error:
        model.ask(questions, images[:count])
    assert error.value.fix == "one image for all questions, or one for each"


def test_generate_goes_on_with_conversations(model, images):
    """One turn is a question; more turns are read too; visual tokens do as well as pictures."""
    talks = [[Turn("user", f"{MARK}\n{question}")] for question in QUESTIONS]
    said = model.generate(talks, [[image] for image in images[:3]], max_new_tokens=SHORT)
    assert said == model.ask(QUESTIONS, images[:3], max_new_tokens=SHORT)
    tokens = [[model.visual_tokens(image)[0]] for image in images[:3]]
    assert model.generate(talks, tokens, max_new_tokens=SHORT) == said
    longer = [*talks[0], Turn("assistant", said[0] or "a star"), Turn("user", "is it large ?")]
    both = model.generate([longer, talks[1]], [[images[0]], [images[1]]], max_new_tokens=SHORT)
    assert both[1] == said[1]
    assert both[:1] == model.generate([longer], [[images[0]]], max_new_tokens=SHORT)
    text = [Turn("user", QUESTIONS[0])]
    assert model.generate([text], max_new_tokens=SHORT) == [model.ask(QUESTIONS[0], max_new_tokens=SHORT)]


def test_generate_counts_marks(model, images):
    with pytest.raises(DataError, match="1 <image> marks for 0 images"):
        model.generate([[Turn("user", MARK)]])
    with pytest.raises(DataError, match="1 <image> marks for 2 images"):
        model.generate([[Turn("user", MARK)]], [images[:2]])


# Looked into


def test_visual_tokens_have_a_gradient_in_training_mode_alone(model, images):
    alone, together = model.visual_tokens(images[0]), model.visual_tokens(images[:3])
    assert together.shape == (3, model.tokens, model.llm.dim)
    assert not together.requires_grad
    assert torch.allclose(together[:1], alone, atol=1e-5)
    assert torch.equal(model.visual_tokens(model.pixels(images[:3])), together)
    model.freeze_all_but(["adapter"])
    model.train()
    tokens = model.visual_tokens(images[:3])
    assert torch.equal(tokens, together)
    tokens.sum().backward()
    assert all(p.grad is not None for p in model.adapter.parameters())
    assert all(p.grad is None for p in model.vision.parameters())


def test_the_encoder_learns_where_it_is_told_to(model, images):
    model.freeze_all_but(["vision"])
    model.train()
    model.visual_tokens(images[0]).sum().backward()
    assert any(p.grad is not None for p in model.vision.parameters())
    assert all(p.grad is None for p in model.adapter.parameters())


LOOKS = {
    "visual_tokens": lambda model, images: model.visual_tokens(images),
    "forward": lambda model, images: model(torch.tensor([model.llm.chat.prompt([Turn("user", MARK)], [36])]),
                                           pixels_B3SS=model.pixels(images[0])),
    "hidden_states": lambda model, images: model.hidden_states(images),
    "nearest_words": lambda model, images: model.nearest_words(images, [0, 1]),
    "ask": lambda model, images: model.ask(QUESTIONS[0], images[0], max_new_tokens=2),
    "generate": lambda model, images: model.generate([[Turn("user", MARK)]], [[images[0]]], max_new_tokens=2),
    "perplexity": lambda model, images: model.perplexity(["a red star"]),
    "inputs": lambda model, images: model.inputs([[Turn("user", MARK), Turn("assistant", "red")]], [[images[0]]]),
    "word_embeddings": lambda model, images: model.word_embeddings(["red"])[torch.tensor([0])],
}  # fmt: skip


@pytest.mark.parametrize("look", LOOKS)
def test_looking_changes_no_mode_and_nothing_that_learns(model, images, look):
    """Modes set unevenly, as somebody's loop may have them."""
    model.train()
    model.llm.lm.base_model.layers[1].eval()
    model.vision.eval().requires_grad_(False)
    before = state(model)
    LOOKS[look](model, images[:2])
    assert state(model) == before


def test_hidden_states_from_the_adapter_to_the_last_layer(model, images):
    states = model.hidden_states(images[:2])
    assert list(states) == list(range(model.depth + 1))
    assert all(hidden.shape == (2, 36, 128) and not hidden.requires_grad for hidden in states.values())
    assert torch.equal(states[0], model.visual_tokens(images[:2]))
    assert list(model.hidden_states(images[0], [2, 0])) == [2, 0]
    assert torch.allclose(model.hidden_states(images[1], [2])[2], states[2][1:], atol=1e-5)
    assert torch.equal(model.hidden_states(model.pixels(images[:2]), [3])[3], states[3])


def test_layers_that_are_not_there_or_not_shown(model, images):
    with pytest.raises(CheckError, match="no layer 5: the language model has 4") as error:
        model.hidden_states(images[0], [0, 5])
    assert error.value.fix == "0 (what the adapter makes) to 4"
    model.llm.watchable = False
    assert model.depth == 0
    assert list(model.hidden_states(images[0])) == [0]
    with pytest.raises(CheckError, match="CausalLM shows none of its layers"):
        model.hidden_states(images[0], [1])


def test_tokens_and_places_that_differ_in_number(model, images):
    ids_RS = torch.tensor([[2, *[model.llm.chat.mark] * 35, 9]])
    with pytest.raises(StageError, match="35 places for visual tokens, 36 tokens"):
        model.embed(ids_RS, model.visual_tokens(images[0]))
    with pytest.raises(StageError, match="35 places for visual tokens, 72 tokens"):
        model.embed(ids_RS, model.visual_tokens(images[:2]))


@pytest.mark.parametrize("look", ["visual_tokens", "hidden_states", "nearest_words"])
def test_a_language_model_alone_sees_nothing(model, images, look):
    alone = VLM(None, None, model.llm)
    assert (alone.grid, alone.tokens) == (None, 0)
    assert alone.ask(QUESTIONS[0], max_new_tokens=SHORT) == model.ask(QUESTIONS[0], max_new_tokens=SHORT)
    with pytest.raises(CheckError, match="this model has no vision encoder") as error:
        LOOKS[look](alone, images[:1])
    assert "VLM(vision, adapter, llm)" in error.value.fix


@pytest.mark.parametrize("top_k", [0, -2])
def test_no_word_of_a_token(model, images, top_k):
    with pytest.raises(CheckError, match=f"top_k must be at least 1, got {top_k}"):
        model.nearest_words(images[0], top_k=top_k)


def test_nearest_words_is_a_function_too(model, images):
    found = mmalign.nearest_words(model, images[:2], [0, 2], 3, ["a", "b"])
    assert list(found.rows()) == list(model.nearest_words(images[:2], [0, 2], 3, ["a", "b"]).rows())
    assert [one.image for one in found] == ["a", "a", "b", "b"]
    assert [one.image for one in model.nearest_words(images[:2])] == ["0", "1"]


@torch.no_grad()
def test_perplexity_text_by_text(model):
    """exp of the mean over tokens, not over texts, whatever is padded; more texts than a pass holds."""
    texts = ["a red star", "there is one large blue ring on the left . the circle is green", "a"] * 13
    total, count = 0.0, 0
    for text in texts:
        ids = model.llm.chat.tokenizer(text)["input_ids"]
        logits_SV = model.llm.lm(torch.tensor([ids])).logits[0]
        total += F.cross_entropy(logits_SV[:-1], torch.tensor(ids[1:]), reduction="sum").item()
        count += len(ids) - 1
    assert model.perplexity(texts) == pytest.approx(math.exp(total / count), rel=1e-5)


# A batch to train on


def test_inputs_are_what_the_training_stage_trains_on(model):
    data = VisualChat(4)
    collate = Collate(data, model.llm.chat, model.vision, model.tokens, 400, BadSamples(0))
    batch = collate.batch(range(4), seed=0)
    inputs = model.inputs([r.turns for r in data], [[data.image(i) for i in r.images] for r in data])
    assert set(inputs) == {"input_ids", "attention_mask", "labels", "pixel_values", "picture_sizes"}
    assert torch.equal(inputs["input_ids"], batch.ids_RS)
    assert torch.equal(inputs["attention_mask"], batch.mask_RS)
    assert torch.equal(inputs["pixel_values"], batch.pixels_B3SS)
    trained = inputs["labels"] != -100
    assert torch.equal(trained, batch.weight_RS > 0)
    assert torch.equal(inputs["labels"][trained], batch.ids_RS[trained])
    assert (~trained).any(1).all()


def test_inputs_of_several_images_and_none(model, images):
    answer = Turn("assistant", "yes")
    turns = [[Turn("user", f"{MARK} or {MARK} ?"), answer], [Turn("user", "what is it ?"), answer]]
    inputs = model.inputs(turns, [images[:2], []])
    assert torch.equal(inputs["pixel_values"], model.pixels(images[:2]))
    assert (inputs["input_ids"] == model.llm.chat.mark).sum(1).tolist() == [72, 0]
    logits_RSV = model(inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"])
    assert logits_RSV.shape[:2] == inputs["input_ids"].shape
    assert set(model.inputs(turns[1:])) == {"input_ids", "attention_mask", "labels"}


def test_inputs_whose_images_are_miscounted(model, images):
    with pytest.raises(DataError, match="1 <image> marks for 2 images"):
        model.inputs([[Turn("user", MARK), Turn("assistant", "red")]], [images[:2]])
