"""Readouts: perfect visual tokens through each of them, against loops; and the ceilings that say what can be read."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mmalign.adapters.mlp import MLP
from mmalign.errors import CheckError
from mmalign.io import legible
from mmalign.llms.causal import CausalLM
from mmalign.vision.hf import HFVision
from mmalign.vlm import control, lens, nearest, readout
from mmalign.vlm.lens import lens_of
from mmalign.vlm.model import VLM
from mmalign.vlm.readout import ceilings
from mmalign.vlm.vocabulary import Spellings, word_tokens
from tests import parts
from tests.vlm.test_lens import plain

WORDS = ["star", "unbelievable", "ring", "Blue", "star", "left"]
LAYERS = [0, 1, 2, 3]
KINDS = ("input", "same-layer", "lens")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """As in a pretrained model, the first layer turns words elsewhere, beside a direction common to all and far longer
    than any: they stay told apart, but where the input embeddings are there is nothing any more."""
    torch.manual_seed(0)
    vision = HFVision(str(parts.clip(tmp_path_factory.mktemp("clip"))))
    llm = CausalLM(str(parts.llm("llama", tmp_path_factory.mktemp("llm"))))
    vlm = VLM(vision, MLP(vision.dim, llm.dim, vision.grid), llm).eval()
    turned, _ = torch.linalg.qr(torch.randn(llm.dim, llm.dim))
    far = 20 * torch.randn(llm.dim) * llm.vocabulary().detach().std()

    def moved(_module, inputs, out):
        return (inputs[0] + 0.1 * (out - inputs[0])) @ turned + far

    llm.lm.base_model.layers[0].register_forward_hook(moved)
    return vlm


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lens, "TOKENS", 1500)
    monkeypatch.setattr(readout, "SHOWN", 200)


def test_perfect_tokens_are_read_by_what_is_right_for_the_layer(model):
    """The table of the issue: the papers' way sees nothing behind layer 1, and says so; the others do."""
    found = {kind: ceilings(model, readout.readout(model, kind, LAYERS)) for kind in KINDS}
    for kind in KINDS:
        assert found[kind].keys() == set(LAYERS)
        assert found[kind][0] == 1
    assert found["input"][1] < 0.1
    assert found["same-layer"][1] > 0.95
    assert found["lens"][1] > 0.95
    assert found["lens"][3] > 0.95
    assert not legible.legible(found["input"][1])
    assert legible.legible(found["lens"][1])


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("listed", [False, True])
def test_a_ceiling_by_a_loop(model, kind, listed, monkeypatch):
    """Every token of rows in the place of an image: is the best of all, one by one, the one it is?"""
    monkeypatch.setattr(control, "ROW", 7)
    words = WORDS if listed else None
    read = readout.readout(model, kind, [0, 2], words)
    number_N = torch.tensor([0, 1, 3, 2, 5]) if listed else torch.tensor([*word_tokens(model.llm)[:18].tolist(), 5])
    found = ceilings(model, read, number_N)
    if listed:
        pieces = [model.llm.chat.pieces([word])[0] for word in WORDS]
        embeds = torch.stack([model.llm.embed(torch.tensor(ids)).mean(0) for ids in pieces])[number_N]
        hidden = model.states(embeds[None, :], [0, 2])[2][0]
    else:
        embeds = model.llm.embed(number_N)
        hidden = plain(model, torch.split(number_N, 7))[2]
    own = lens_of(model, [2])
    for layer, states in ((0, embeds), (2, hidden)):
        near, hits = read.near[layer], []
        units = near.unit_TD
        if kind == "lens" and layer:  # what is expected of each, and the states, in units of the noise
            every = embeds.new_tensor([1.0] * len(units))[:, None]
            units = torch.cat([read.embed(near.number_T), every], 1) @ own.forth[2]
            states = torch.cat([F.rms_norm(states, states.shape[-1:]), torch.ones(len(states), 1)], 1) @ own.white[2]
        rows = dict(zip(near.number_T.tolist(), units, strict=True))
        for number, state in zip(number_N.tolist(), states, strict=True):
            if number in rows:
                hits.append(max(rows, key=lambda n, s=state: float(F.cosine_similarity(rows[n], s, 0))) == number)
        assert len(hits) == len(number_N) - (kind == "same-layer" and layer == 2 and not listed)
        assert found[layer] == pytest.approx(sum(hits) / len(hits))


@torch.no_grad()
def test_a_word_read_in_another_spelling_is_right_and_not_strictly(model):
    """What is nearest stands still; what counts as the same word changes."""
    read = readout.readout(model, "input", [0])
    shown = read.word_T[:10]
    near = replace(read.near[0], number_T=read.near[0].number_T.clone())
    a, b = (int((near.number_T == number).nonzero()) for number in shown[:2])
    near.number_T[[a, b]] = near.number_T[[b, a]]  # the first two are taken for each other
    text_of = {int(n): str(n) for n in read.word_T.tolist()} | {int(shown[0]): "star", int(shown[1]): "Stars"}
    swapped = replace(read, near={0: near}, spellings=lambda: Spellings(text_of))
    assert readout.read_right(model, swapped, shown)[0] == (1.0, 0.8, 10)
    apart = replace(swapped, spellings=lambda: Spellings(text_of | {int(shown[1]): "ring"}))
    assert readout.read_right(model, apart, shown)[0] == (0.8, 0.8, 10)
    assert ceilings(model, swapped, shown) == {0: 1.0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("listed", [False, True])
def test_perfect_tokens_in_the_place_of_images(model, kind, listed, monkeypatch):
    """Each image's own tokens, read in its own context; in any number of passes."""
    words = WORDS if listed else None
    number_BQ = control.lists(torch.arange(6) if listed else word_tokens(model.llm), 75, seed=5).view(3, 25)
    read = readout.readout(model, kind, LAYERS, words)
    with torch.no_grad():
        hidden = [model.states(read.embed(number_Q)[None], LAYERS) for number_Q in number_BQ]
    monkeypatch.setattr(nearest, "HELD", 4 * 25 * model.llm.dim * len(LAYERS) * 2)
    near = model.nearest_perfect(number_BQ, LAYERS, words, kind)
    for layer in LAYERS:
        assert near[layer].tolist() == [read(layer, own[layer][0])[1][:, 0].tolist() for own in hidden]
    of = WORDS if listed else range(model.llm.vocab)
    assert [of[n] for n in near[0].flatten()] == [of[n] for n in number_BQ.flatten()]


def test_states_of_words_by_a_loop(model, monkeypatch):
    monkeypatch.setattr(control, "ROW", 9)
    monkeypatch.setattr(readout, "STATES", 2)
    near = readout.readout(model, "same-layer", [1]).near[1]
    tokens = word_tokens(model.llm)
    assert torch.equal(near.number_T, tokens)
    shown = control.lists(tokens, 2 * len(tokens), seed=1)
    hidden = F.normalize(plain(model, torch.split(shown, 9))[1], dim=-1)
    for number, unit in zip(tokens.tolist(), near.unit_TD, strict=True):
        mean = hidden[shown == number].mean(0)
        assert torch.allclose(unit, F.normalize(mean, dim=0), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_of_images(model, kind):
    picture = Image.effect_noise((50, 35), 90).convert("RGB")
    read = readout.readout(model, kind, LAYERS)
    hidden = model.hidden_states(picture, LAYERS)
    words = model.nearest_words(picture, LAYERS, 2, readout=kind)
    near = model.nearest_tokens(picture, LAYERS, 2, kind)
    for layer in LAYERS:
        cosine, number = read(layer, hidden[layer][0], 2)
        assert torch.equal(near[layer][1][0], number)
        assert [c for row in words.words[layer][0] for _, c in row] == pytest.approx(cosine.flatten().tolist())
    assert words.readout == kind
    assert words.ceiling == {n: c for n, c in model.ceilings(LAYERS, kind).items() if n}
    assert {one.layer: bool(one.remark) for one in words} == {0: False, 1: True, 2: True, 3: True}
    listed = model.nearest_listed(picture, WORDS, [0, 1], readout=kind)
    assert listed[1][1].max() < len(WORDS)
    assert ("cannot be read so" in words.html()) == any(share < 0.5 for share in words.ceiling.values())


def test_nothing_is_fitted_for_the_tokens_themselves(model, monkeypatch):
    monkeypatch.setattr(control, "states", lambda *_: pytest.fail("a pass"))
    picture = Image.new("RGB", (50, 35))
    assert all(not model.nearest_words(picture, readout=kind).ceiling for kind in KINDS)


def test_another_readout(model):
    with pytest.raises(CheckError, match="readout must be one of input, same-layer, lens, got 'tuned'"):
        readout.readout(model, "tuned", [0])
    with pytest.raises(CheckError, match="no layer 4: the language model has 3"):
        readout.readout(model, "lens", [4])


@pytest.mark.parametrize(
    ("ceiling", "says"),
    [
        (None, ""), (1.0, "100% of perfect tokens are read right"),
        (0.5, "50% of perfect tokens are read right"),
        (0.48, "48% of perfect tokens are read right: cannot be read so"),
    ],
)  # fmt: skip
def test_what_a_ceiling_says(ceiling, says):
    assert legible.told(ceiling) == says
