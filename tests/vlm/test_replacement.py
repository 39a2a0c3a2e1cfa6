"""Visual tokens replaced by words: against a conversation written out by hand, and tokens that are words."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mmalign.adapters.mlp import MLP
from mmalign.data import MARK, Turn
from mmalign.errors import CheckError
from mmalign.io.wordlist import forms
from mmalign.llms.causal import CausalLM
from mmalign.vision.hf import HFVision
from mmalign.vlm.model import VLM
from mmalign.vlm.replacement import others
from mmalign.vlm.vocabulary import spelled, word_tokens
from tests import parts

GRID, MOST = (5, 3), 6
QUESTION = "what is this ?"


def made(folder, dtype=torch.float32):
    """A model of random weights with 5 x 3 visual tokens: the first 15 of its encoder's 25 patches."""
    torch.manual_seed(0)
    vision = HFVision(str(parts.clip(folder / "clip")))
    llm = CausalLM(str(parts.llm("llama", folder / "llm", "bytelevel")))
    model = VLM(vision, MLP(vision.dim, llm.dim, vision.grid), llm).eval().to(dtype)
    adapter = model.adapter

    class Fewer(torch.nn.Module):
        grid, tokens, keeps_grid = GRID, 15, True

        def __init__(self):
            super().__init__()
            self.inner = adapter

        def forward(self, patches_BPC):
            return self.inner(patches_BPC)[:, :15]

    model.adapter = Fewer()
    return model


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def model(request, tmp_path_factory):
    return made(tmp_path_factory.mktemp("parts"), request.param)


@pytest.fixture
def picture():
    noise = np.random.default_rng(0).integers(0, 256, (35, 50, 3), np.uint8)
    return Image.fromarray(noise)


@torch.no_grad()
def by_hand(model, embeds_QD, most=MOST):
    """The greedy answer: the prompt's embeddings with these in the image's place, a whole pass of transformers' model
    for every new token."""
    chat = model.llm.chat
    ids = torch.tensor([chat.prompt([Turn("user", f"{MARK}\n{QUESTION}")], [len(embeds_QD)])])
    embeds = model.llm.embed(ids.masked_fill(ids == chat.mark, 0))
    embeds[ids == chat.mark] = embeds_QD.to(embeds.dtype)
    said = []
    while len(said) < most:
        (logits,) = model.llm.lm(inputs_embeds=embeds).logits[:, -1]
        if int(logits.argmax()) in chat.ends:
            break
        said.append(int(logits.argmax()))
        embeds = torch.cat([embeds, model.llm.embed(torch.tensor([said[-1:]]))], 1)
    return chat.text(said)


def closest(model, vector, numbers):
    table = model.llm.vocabulary().detach().float()
    return max(numbers, key=lambda number: float(F.cosine_similarity(vector.float(), table[number], dim=0)))


@pytest.mark.parametrize("layer", [0, 2])
def test_each_token_by_its_nearest_word(model, picture, layer):
    chat = model.llm.chat
    known = sorted({i for i in chat.tokenizer.get_vocab().values() if i < model.llm.vocab} - {chat.mark})
    (one,) = model.replaced(picture, QUESTION, [layer], max_new_tokens=MOST)
    tokens = model.visual_tokens(picture)[0]
    nearest = [closest(model, vector, known) for vector in model.hidden_states(picture, [layer])[layer][0]]
    assert one.words == [spelled(chat.tokenizer, number) for number in nearest]
    assert (one.image, one.layer, one.question) == ("0", layer, QUESTION)
    assert one.answer == by_hand(model, tokens) == model.ask(QUESTION, picture, MOST)
    assert one.replaced == by_hand(model, model.llm.embed(torch.tensor(nearest)))
    assert len(set(nearest)) > 1
    if model.llm.embed(torch.tensor([0])).dtype == torch.float32:  # in bf16 few words may be all a random model says
        assert one.replaced != one.answer


def test_the_control_has_the_pattern_and_not_the_words(model, picture):
    (one,) = model.replaced(picture, QUESTION, max_new_tokens=MOST)
    assert len(set(one.others)) > 5
    forms_of_words = {form for word in one.words for form in forms(word)}
    assert forms_of_words.isdisjoint(word.casefold() for word in one.others)
    texts = {spelled(model.llm.chat.tokenizer, number): number for number in word_tokens(model.llm).tolist()}
    assert one.control == by_hand(model, model.llm.embed(torch.tensor([texts[word] for word in one.others])))
    (again,) = model.replaced(picture, QUESTION, max_new_tokens=MOST)
    assert again == one


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_tokens_that_are_words_answer_the_same(model, picture, scale, monkeypatch):
    """Exactly; a token of another norm is its word all the same, and stands there with the word's own."""
    own = word_tokens(model.llm)[torch.arange(15) * 3 % 7]
    embeds = model.llm.embed(own).detach()
    monkeypatch.setattr(model.adapter, "forward", lambda patches: scale * embeds.expand(len(patches), -1, -1))
    (one,) = model.replaced(picture, QUESTION, max_new_tokens=MOST)
    assert one.words == [spelled(model.llm.chat.tokenizer, number) for number in own.tolist()]
    assert one.replaced == by_hand(model, embeds)
    assert one.answer == by_hand(model, scale * embeds)
    if scale == 1:
        assert one.answer == one.replaced
    if model.llm.embed(torch.tensor([0])).dtype == torch.float32:
        assert one.control != one.replaced


def test_the_words_of_a_list(model, picture):
    listed = ["unbelievable", "star", "zebra crossing", "x", *map(str, range(20))]
    (one,) = model.replaced(picture, QUESTION, words=listed, max_new_tokens=MOST)
    means = {}
    for word in listed:
        means[word] = model.llm.embed(torch.tensor(model.llm.chat.pieces([word])[0])).detach().float().mean(0)
    tokens = model.visual_tokens(picture)[0].float()
    cosine = partial(F.cosine_similarity, dim=0)
    assert one.words == [max(listed, key=lambda w, t=token: float(cosine(t, means[w]))) for token in tokens]
    assert one.replaced == by_hand(model, torch.stack([means[word] for word in one.words]))
    assert set(one.others) <= set(listed) - set(one.words)


def test_images_and_layers_in_order(model, picture):
    pictures = [picture, Image.new("RGB", (30, 30), (9, 200, 9))]
    both = model.replaced(pictures, QUESTION, [2, 0], ["a", "b"], max_new_tokens=2)
    assert [(one.image, one.layer) for one in both] == [("a", 2), ("a", 0), ("b", 2), ("b", 0)]
    assert both[:2] == model.replaced(picture, QUESTION, [2, 0], ["a"], max_new_tokens=2)
    with pytest.raises(CheckError, match="1 names of 2 images") as error:
        model.replaced(pictures, QUESTION, names=["a"])
    assert error.value.fix == "a name for each image"


def test_looking_changes_no_mode(model, picture):
    model.train()
    modes = [module.training for module in model.modules()]
    trained = model.replaced(picture, QUESTION, max_new_tokens=2)
    assert [module.training for module in model.modules()] == modes
    assert trained == model.eval().replaced(picture, QUESTION, max_new_tokens=2)


def alone(number):
    return {number}


@pytest.mark.parametrize(("count", "kinds"), [(1, 1), (15, 1), (15, 4), (40, 40)])
def test_others_of_any_pattern(count, kinds):
    words = torch.arange(100, 200)
    own = words[torch.arange(count) % kinds]
    other = others(own, words, alone, seed=3)
    assert len({*zip(own.tolist(), other.tolist(), strict=True)}) == kinds == len(set(other.tolist()))
    assert set(other.tolist()) <= set(words.tolist()) - set(own.tolist())
    assert torch.equal(other, others(own, words, alone, seed=3))
    assert len({tuple(others(own, words, alone, seed).tolist()) for seed in range(5)}) > 1


def test_few_words_are_left_or_none():
    other = others(torch.tensor([5, 6, 7, 6]), torch.tensor([4, 5, 6, 7, 8]), alone, seed=0)
    assert set(other.tolist()) == {4, 8}
    assert other[1] == other[3]
    spelled_alike = others(torch.tensor([5, 6]), torch.tensor([4, 5, 6, 7, 8]), lambda n: {n, n + 2}, seed=0)
    assert spelled_alike.tolist() == [4, 4]
    with pytest.raises(CheckError, match="all 2 words are nearest to some visual token: none is left") as error:
        others(torch.tensor([5, 6, 5]), torch.tensor([5, 6]), alone, seed=0)
    assert error.value.fix == "a longer list of words; None: all single tokens"
