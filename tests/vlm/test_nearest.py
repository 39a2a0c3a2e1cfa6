"""The words nearest to visual tokens: against loops from the definition, transformers' hidden states, and the page."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mmalign.adapters.mlp import MLP
from mmalign.data import MARK, Turn
from mmalign.errors import CheckError
from mmalign.llms.causal import CausalLM
from mmalign.objectives import Words
from mmalign.vision.hf import HFVision
from mmalign.vlm import nearest, vocabulary
from mmalign.vlm.model import VLM
from mmalign.vlm.pictures import shown
from mmalign.vlm.vocabulary import spelled
from tests import parts

SIZE = (50, 35)


@pytest.fixture(scope="module", params=["bytelevel", "sentencepiece"])
def model(request, tmp_path_factory):
    torch.manual_seed(0)
    eye = HFVision(str(parts.clip(tmp_path_factory.mktemp("clip"))))
    mouth = CausalLM(str(parts.llm("llama", tmp_path_factory.mktemp("llm"), request.param)))
    return VLM(eye, MLP(eye.dim, mouth.dim, eye.grid), mouth).eval()


@pytest.fixture
def picture():
    return Image.effect_noise(SIZE, 90).convert("RGB")


@torch.no_grad()
def hidden(model, picture):
    """{layer: visual_QD} as transformers returns hidden_states."""
    visual = model.visual_tokens(picture)[0]
    chat = model.llm.chat
    ids = torch.tensor([chat.prompt([Turn("user", f"{MARK}\nDescribe this image.")], [len(visual)])])
    embeds = model.llm.embed(ids.masked_fill(ids == chat.mark, 0))
    embeds[ids == chat.mark] = visual
    states = model.llm.lm.base_model(inputs_embeds=embeds, output_hidden_states=True).hidden_states
    return {layer: state[ids == chat.mark] for layer, state in enumerate(states)}


def test_each_token_by_the_definition(model, picture):
    layers = [2, 0, 3]
    found = list(model.nearest_words(picture, layers, top_k=3, names=["a"]))
    assert [(one.image, one.layer, one.grid) for one in found] == [("a", layer, (5, 5)) for layer in layers]
    chat, embed = model.llm.chat, model.llm.vocabulary().detach()
    states = hidden(model, picture)
    for one in found:
        for token, words in zip(states[one.layer], one.words, strict=True):
            slow = {}
            for number in range(len(chat.tokenizer)):
                if number != chat.mark and number < len(embed):
                    slow[number] = float(F.cosine_similarity(token, embed[number], dim=0))
            best = sorted(slow, key=slow.get, reverse=True)[:3]
            assert [c for _, c in words] == pytest.approx([slow[n] for n in best], abs=1e-5)
            assert words[0][0] == (chat.tokenizer.decode([best[0]]).strip() or "␣")


def test_rows_that_no_token_has_are_never_nearest(model, picture):
    rows = [*range(len(model.llm.chat.tokenizer), model.llm.vocab)]
    assert rows  # the parts have some
    visual = model.visual_tokens(picture)[0, 0]
    weight = model.llm.vocabulary()
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[rows] = visual
    (found,) = model.nearest_words(picture, top_k=1)
    with torch.no_grad():
        weight.copy_(kept)
    assert found.words[0][0][1] < 0.99


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_is_none(model, picture, layer):
    with pytest.raises(CheckError, match=f"no layer {layer}: the language model has 3"):
        model.nearest_words(picture, [layer])


def test_the_picture_as_the_encoder_is_given_it(model, picture):
    """CLIP takes the middle: the sides of a wide picture are gone, its colours are there."""
    wide = Image.new("RGB", (90, 30), (10, 200, 30))
    wide.paste((200, 10, 60), (30, 0, 60, 30))
    given = shown(model.vision, wide)
    assert given.size == (30, 30)
    assert all(abs(a - b) <= 1 for a, b in zip(given.getpixel((15, 15)), (200, 10, 60), strict=True))


@pytest.mark.parametrize("grid", [True, False])
def test_a_page_needs_nothing_else(model, picture, grid):
    words = model.nearest_words(picture, [0, 1], top_k=2, names=["<a>"])
    words.words[0][0][0][0] = ("<script>", 0.5)
    words.grid = words.grid if grid else None
    text = words.html("a title")
    data = json.loads(text.split('class="mmx-data">')[1].split("</script>")[0])
    assert not re.search(r"(src|href)=\"(?!data:)|<link|@import", text.replace('href="data:', ""))
    assert text.count("<script>") == 1  # our own
    assert "<script>" in data["words"]
    assert [one["name"] for one in data["pictures"]] == ["<a>"]
    (pane,) = data["pictures"][0]["panes"]
    assert (pane["grid"], pane["tokens"], pane["layers"]) == ([5, 5] if grid else None, 25, [0, 1])


@pytest.mark.parametrize(
    ("text", "said"), [("##ing", "ing"), (" cat", "cat"), ("##", "##"), ("#####", "#####"), (" ", "␣")]
)
def test_a_token_as_text(text, said):
    assert spelled(SimpleNamespace(decode=lambda ids: text), 0) == said


# Words of a list

LISTED = ["there", "unbelievable", "star", "", "zebra crossing", "star", "Blue", "x"]


def test_words_of_a_list_by_the_definition(model, picture):
    """The mean of a word's pieces (SEA, section 4.2), by a loop; a word that stands there twice counts once."""
    layers = [3, 0]
    found = list(model.nearest_words(picture, layers, top_k=4, words=LISTED))
    chat, embed, states = model.llm.chat, model.llm.vocabulary().detach(), hidden(model, picture)
    pieces = {word: chat.pieces([word])[0] for word in LISTED}
    means = {word: torch.stack([embed[i] for i in ids]).mean(0) for word, ids in pieces.items() if ids}
    assert [one.layer for one in found] == layers
    assert max(map(len, pieces.values())) > 1
    for one in found:
        for token, words in zip(states[one.layer], one.words, strict=True):
            slow = {word: float(F.cosine_similarity(token, mean, dim=0)) for word, mean in means.items()}
            best = sorted(slow, key=slow.get, reverse=True)[:4]
            assert [word for word, _ in words] == best
            assert [c for _, c in words] == pytest.approx([slow[word] for word in best], abs=1e-5)


def test_numbers_of_a_list(model, picture):
    """More wanted than there are: every word once, under its first number."""
    cosine_BQK, word_BQK = model.nearest_listed([picture, picture], LISTED, top_k=50)[0]
    spelled_words = [n for n, word in enumerate(LISTED) if model.llm.chat.pieces([word])[0] and n != 5]
    assert cosine_BQK.shape == word_BQK.shape == (2, 25, len(spelled_words))
    assert set(word_BQK[0, 0].tolist()) == set(spelled_words)
    assert (cosine_BQK.diff(dim=-1) <= 0).all()
    assert torch.equal(word_BQK[0], word_BQK[1])


def test_no_word_at_all(model, picture, monkeypatch):
    with pytest.raises(CheckError, match="top_k must be at least 1, got 0"):
        model.nearest_listed(picture, LISTED, top_k=0)
    with pytest.raises(CheckError, match="a list of no words"):
        model.nearest_words(picture, words=[])
    pieces = model.llm.chat.pieces
    monkeypatch.setattr(
        model.llm.chat,
        "pieces",
        lambda words: [[] if word == "x" else ids for word, ids in zip(words, pieces(words), strict=True)],
    )
    assert {w for words in model.nearest_words(picture, words=["x", "star"]).words[0][0] for w, _ in words} == {"star"}
    with pytest.raises(CheckError, match="the tokenizer of the language model makes nothing of any of 2 words"):
        model.nearest_listed(picture, ["x", "x"])


@pytest.mark.parametrize("ask", ["tokens", "listed"])
def test_many_images_are_looked_at_a_few_at_a_time(model, ask, monkeypatch):
    pictures = [Image.effect_noise(SIZE, 30 * n).convert("RGB") for n in range(5)]
    passes = []
    hidden_states = type(model).hidden_states

    def counted(self, images, layers=None):
        passes.append(len(images))
        return hidden_states(self, images, layers)

    monkeypatch.setattr(type(model), "hidden_states", counted)
    look = {"tokens": model.nearest_tokens, "listed": lambda *args: model.nearest_listed(args[0], LISTED, *args[1:])}
    whole = look[ask](pictures, [0, 2], 3)
    monkeypatch.setattr(nearest, "HELD", 4 * 25 * model.llm.dim * 3 * 2)  # two images of layers 0 to 2
    parts = look[ask](pictures, [0, 2], 3)
    assert passes == [5, 2, 2, 1]
    for layer in (0, 2):
        assert torch.allclose(whole[layer][0], parts[layer][0], atol=1e-5)
        assert torch.equal(whole[layer][1], parts[layer][1])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-6)])
@pytest.mark.parametrize(
    ("count", "width", "longest", "vectors"), [(1, 3, 1, (1,)), (37, 5, 4, (2, 3)), (300, 16, 7, (7, 1, 2))]
)
def test_among_words_of_any_shape(dtype, tolerance, count, width, longest, vectors, monkeypatch):
    """Embeddings of either precision, fp32 from there on; a list and vectors that do not fit one product."""
    random = torch.Generator().manual_seed(0)
    embed_VD = torch.randn(50, width, generator=random).to(dtype)
    pieces_WT = torch.randint(-1, 50, (count, longest), generator=random)
    pieces_WT[0, 0] = 7
    pieces_WT = torch.where((pieces_WT < 0).cumsum(1) > 0, -1, pieces_WT)  # pieces first, -1 behind them
    words = Words([f"word {n}" for n in range(count)], pieces_WT, lambda ids: embed_VD[ids])
    vectors_ND = torch.randn(*vectors, width, generator=random).to(dtype)
    monkeypatch.setattr(vocabulary, "LIMIT", 256)
    near = vocabulary.among_words(words, torch.device("cpu"))
    cosine_NK, word_NK = near(vectors_ND, 4)
    rows = [[i for i in row if i >= 0] for row in pieces_WT.tolist()]
    means = {n: embed_VD[torch.tensor(row)].double().mean(0) for n, row in enumerate(rows) if row}
    assert near.number_T.tolist() == list(means)
    kept = min(4, len(means))
    assert cosine_NK.shape == (*vectors, kept)
    triples = zip(vectors_ND.flatten(0, -2), cosine_NK.flatten(0, -2), word_NK.flatten(0, -2), strict=True)
    for vector, cosine_K, word_K in triples:
        slow = {n: float(F.cosine_similarity(vector.double(), mean, dim=0)) for n, mean in means.items()}
        assert cosine_K.tolist() == pytest.approx(sorted(slow.values(), reverse=True)[:kept], abs=tolerance)
        assert [slow[n] for n in word_K.tolist()] == pytest.approx(cosine_K.tolist(), abs=tolerance)
