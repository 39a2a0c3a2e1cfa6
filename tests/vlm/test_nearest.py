"""The words nearest to visual tokens: against loops from the definition, transformers' hidden states, and the page."""

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
from mmalign.vision.hf import HFVision
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
    bare = re.sub(r"data:image/png;base64,[\w+/=]+", "data:", text)
    assert not re.search(r"https?:|//|<link|<script|@import|src=\"(?!data:)|url\((?!data:)", bare)
    assert "&lt;a&gt;" in text
    assert "&lt;script&gt;" in text
    assert text.count('<div class="seen"') == (2 if grid else 0)
    assert text.count("<tr>") == 2 * 25
    assert "layer 0, as the adapter makes them" in text
    assert "layer 1<" in text


@pytest.mark.parametrize(
    ("text", "said"), [("##ing", "ing"), (" cat", "cat"), ("##", "##"), ("#####", "#####"), (" ", "␣")]
)
def test_a_token_as_text(text, said):
    assert spelled(SimpleNamespace(decode=lambda ids: text), 0) == said
