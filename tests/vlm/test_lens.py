"""The lens: ridge regression in pieces against direct solutions, and what is fitted on what."""

import pytest
import torch
from torch.nn import functional as F

from mmalign.errors import CheckError
from mmalign.io import files
from mmalign.io.texts import read_texts
from mmalign.llms.causal import CausalLM
from mmalign.vlm import control, lens
from mmalign.vlm.lens import Lens, Ridge, expected, fit, lens_of, normalised
from mmalign.vlm.model import VLM
from mmalign.vlm.vocabulary import Nearest, word_tokens
from tests import parts


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A language model alone, random: its words are in its states, but not where the embeddings are."""
    torch.manual_seed(0)
    return VLM(None, None, CausalLM(str(parts.llm("llama", tmp_path_factory.mktemp("llm"))))).eval()


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lens, "TOKENS", 1000)


def pair(count, dim, dtype=torch.float32):
    """x with numbers of very different sizes and a mean, as hidden states have them; y that depends on it."""
    g = torch.Generator().manual_seed(count)
    x = (torch.randn(count, dim, generator=g) * torch.logspace(-1, 1, dim) + torch.randn(dim, generator=g)).to(dtype)
    return x, x.float() @ torch.randn(dim, dim, generator=g) + torch.randn(count, dim, generator=g)


def solved(x, y, ridge, piece):
    sums = Ridge(x.shape[1])
    for part in zip(torch.split(x, piece), torch.split(y, piece), strict=True):
        sums.add(*part)
    return sums.solve(ridge)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("count", "dim"), [(200, 7), (31, 5), (9, 1), (400, 33)])
def test_without_a_ridge_it_is_lstsq(count, dim, dtype):
    x, y = pair(count, dim, dtype)
    want = torch.linalg.lstsq(torch.cat([x.double(), torch.ones(count, 1)], 1), y.double()).solution
    assert torch.allclose(solved(x, y, 0.0, 13), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ridge", [1e-4, 0.1, 10.0])
@pytest.mark.parametrize(("count", "dim"), [(200, 7), (5, 9), (1, 3), (64, 33)])
def test_with_a_ridge_it_is_the_direct_solution(count, dim, ridge):
    """Rows of the penalty's root below x, and no shrinking of b; more numbers than tokens, too."""
    x, y = (tensor.double() for tensor in pair(count, dim))
    spread = x - x.mean(0)
    penalty = max(ridge * spread.square().mean().item(), lens.TINY) * count
    left = torch.cat([torch.cat([x, torch.ones(count, 1)], 1), torch.eye(dim, dim + 1).double() * penalty**0.5])
    want = torch.linalg.lstsq(left, torch.cat([y, torch.zeros(dim, dim).double()])).solution
    if count == 1:
        want = torch.cat([torch.zeros(dim, dim).double(), y])
    assert torch.allclose(solved(x, y, ridge, 3), want, atol=1e-5, rtol=1e-5)


def test_a_scale_of_x_and_a_repetition_of_all_change_nothing():
    x, y = pair(50, 6)
    once = solved(x, y, 0.1, 50)
    assert torch.allclose(solved(x * 8, y, 0.1, 50)[:-1] * 8, once[:-1], rtol=1e-9)
    assert torch.allclose(solved(x.repeat(3, 1), y.repeat(3, 1), 0.1, 50), once, rtol=1e-9)


@pytest.mark.parametrize("piece", [1, 7, 64, 1000])
def test_in_pieces_it_is_the_same_and_no_larger(piece):
    x, y = pair(300, 12)
    sums = Ridge(12)
    before = sums.sums.numel()
    for part in zip(torch.split(x, piece), torch.split(y, piece), strict=True):
        sums.add(*part)
    assert vars(sums).keys() == {"dim", "sums"}
    assert sums.sums.numel() == before == 13 * 25
    assert torch.allclose(sums.solve(1e-4), solved(x, y, 1e-4, 300), rtol=1e-9, atol=1e-12)


def test_of_nothing_and_of_what_never_changes():
    assert not Ridge(3).solve(0.1).any()
    y = torch.randn(4, 3)
    flat = solved(torch.ones(4, 3), y, 0.0, 2)
    assert torch.allclose(flat, torch.cat([torch.zeros(3, 3), y.mean(0, keepdim=True)]).double(), atol=1e-6)


@pytest.mark.parametrize(("ridge", "least"), [(1e-4, 1e-3), (0.3, 0.2)])
@pytest.mark.parametrize(("count", "dim"), [(200, 7), (31, 5), (9, 1), (5, 9), (400, 33)])
def test_in_units_of_the_noise_by_the_definition(count, dim, ridge, least):
    """x by y as a direct ridge regression has it, what that leaves, and Mahalanobis products by an explicit inverse."""
    x, y = (tensor.double() for tensor in pair(count, dim))
    sums = Ridge(dim)
    for part in zip(torch.split(x, 13), torch.split(y, 13), strict=True):
        sums.add(*part)
    white_ED, forth_ED = sums.noise(y.T @ y, ridge, least)
    y_spread, x_spread = y - y.mean(0), x - x.mean(0)
    penalty = ridge * y_spread.square().mean() * count
    a_DD = torch.linalg.solve(y_spread.T @ y_spread + penalty * torch.eye(dim), y_spread.T @ x_spread)
    left = x_spread - y_spread @ a_DD
    noise_DD = left.T @ left / count
    noise_DD += least * noise_DD.diagonal().mean() * torch.eye(dim)
    want = x_spread @ torch.linalg.inv(noise_DD) @ (y_spread @ a_DD).T
    found = (x @ white_ED[:-1] + white_ED[-1]) @ (y @ forth_ED[:-1] + forth_ED[-1]).T
    assert torch.allclose(found, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())


def test_words_never_seen_are_read_where_the_nearest_of_what_it_makes_is_another():
    """States that are the embeddings turned, with much noise in half of the directions: the noise is not looked at."""
    g = torch.Generator().manual_seed(0)
    embed_TD, turn_DD = torch.randn(600, 16, generator=g), torch.randn(16, 16, generator=g)
    states_TD = embed_TD @ turn_DD + torch.randn(600, 8, generator=g) @ (5 * torch.randn(8, 16, generator=g))
    x_TD = normalised(states_TD)
    sums = Ridge(16)
    sums.add(x_TD[:500], embed_TD[:500])
    pair_ED = sums.noise(embed_TD[:500].double().T @ embed_TD[:500].double(), 1e-4, 1e-3)
    own = Lens({1: sums.solve(1e-4).float()}, {1: pair_ED[0].float()}, {1: pair_ED[1].float()})
    among = Nearest(torch.arange(600), F.normalize(embed_TD, dim=-1))
    through = (
        expected(own, 1, among, embed_TD.__getitem__)(states_TD[500:])[1][:, 0] == torch.arange(500, 600)
    ).float()
    back = (among(own(1, states_TD[500:]))[1][:, 0] == torch.arange(500, 600)).float()
    assert through.mean() > back.mean() + 0.1


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 5), (0, 5)])
def test_what_is_nearest_by_a_loop(shape, dtype, monkeypatch):
    """The cosine of a state and of what is expected of each embedding, in pieces that do not divide."""
    monkeypatch.setattr(lens, "LIMIT", 4 * 5 * 3)
    g = torch.Generator().manual_seed(2)
    white_ED, forth_ED, embed_VD = (torch.randn(n, 5, generator=g) for n in (6, 6, 40))
    number_T = torch.tensor([3, 39, 0, 7, 8, 22, 23])
    among = Nearest(number_T, F.normalize(embed_VD[number_T], dim=-1))
    hidden = torch.randn(shape, generator=g).to(dtype)
    near = expected(Lens({}, {2: white_ED}, {2: forth_ED}), 2, among, embed_VD.__getitem__)
    cosine, number = near(hidden, 2)
    assert cosine.shape == number.shape == (*shape[:-1], 2)
    for found, numbers, state in zip(cosine.view(-1, 2), number.view(-1, 2), hidden.view(-1, 5), strict=True):
        white = F.rms_norm(state.float(), (5,)) @ white_ED[:-1] + white_ED[-1]
        want = {
            int(n): F.cosine_similarity(white, embed_VD[n] @ forth_ED[:-1] + forth_ED[-1], 0).item() for n in number_T
        }
        best = sorted(want, key=want.__getitem__, reverse=True)[:2]
        assert numbers.tolist() == best
        assert found.tolist() == pytest.approx([want[n] for n in best], abs=1e-5)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_it_does_to_a_state(shape, dtype):
    maps = torch.randn(5, 4, dtype=torch.float64)
    hidden = torch.randn(shape).to(dtype)
    out = Lens({2: maps})(2, hidden)
    assert out.dtype == torch.promote_types(dtype, torch.float32)
    exact = hidden.double()
    want = exact / exact.square().mean(-1, keepdim=True).sqrt() @ maps[:-1] + maps[-1]
    assert torch.allclose(out.double(), want, atol=1e-5)
    assert torch.equal(Lens({})(0, hidden).to(dtype), hidden)  # where the embeddings are
    assert torch.isfinite(normalised(torch.zeros(shape))).all()


@torch.no_grad()
def plain(model, rows):
    """{layer: hidden_RQD} of rows of tokens in the place of an image, from transformers."""
    chat = model.llm.chat
    front = torch.tensor(model.before_image())
    states = []
    for row in rows:
        embeds = model.llm.embed(torch.cat([front, row]))[None]
        hidden = model.llm.lm.base_model(inputs_embeds=embeds, output_hidden_states=True).hidden_states
        states.append([state[0, len(front) :] for state in hidden])
    assert chat.mark not in front
    return [torch.cat(each) for each in zip(*states, strict=True)]


def test_what_it_is_fitted_on(model, monkeypatch):
    """Rows of tokens where an image would be, the last one shorter; every layer by a direct solution."""
    monkeypatch.setattr(control, "ROW", 11)
    monkeypatch.setattr(control, "PASS", 3)
    token_N = control.lists(word_tokens(model.llm), 80, seed=3)
    hidden = plain(model, torch.split(token_N, 11))
    own = fit(model, [1, 3], token_N, ridge=0.01)
    assert own.maps.keys() == {1, 3}
    for layer, found in own.maps.items():
        x = F.rms_norm(hidden[layer].double(), (model.llm.dim,))
        want = solved(x, model.llm.embed(token_N).detach(), 0.01, 80)
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), want, atol=1e-4 * want.abs().max().item())


def test_lists_cover_the_words_and_are_the_same_again():
    numbers = torch.tensor([3, 5, 8, 13])
    drawn = control.lists(numbers, 10, seed=1)
    assert drawn[:4].sort().values.tolist() == drawn[4:8].sort().values.tolist() == numbers.tolist()
    assert torch.equal(drawn, control.lists(numbers, 10, seed=1))
    assert not torch.equal(control.lists(numbers, 40, seed=1), control.lists(numbers, 40, seed=2))


@pytest.mark.parametrize("count", [0, 1, 11, 12, 70])
def test_every_number_comes_once_and_in_order(count):
    rows = list(control.in_rows(torch.arange(count), 11))
    assert [n for row in rows for n in row.flatten().tolist()] == list(range(count))
    assert all(0 < len(row) <= control.PASS for row in rows)


def test_texts_bring_their_tokens_without_special_ones(model):
    """Behind lists of all words; what the tokenizer puts in front of each text says nothing."""
    chat, texts = model.llm.chat, ["a red star", "blue"]
    chat.bos = True
    chat.__dict__.pop("begin", None)
    assert all(chat.plain(text)[0] == chat.tokenizer.bos_token_id for text in texts)
    token_N = lens.tokens(model, texts)
    assert set(token_N[:1000].tolist()) == set(word_tokens(model.llm).tolist())
    assert token_N[1000:].tolist() == [i for text in texts for i in chat.plain(text)[1:]]


def test_without_texts_it_is_fitted_on_those_of_the_package(model):
    """Which are not the text that ceilings are measured on."""
    token_N = lens.tokens(model)
    assert torch.equal(token_N, lens.tokens(model, read_texts(lens.EVERYDAY)))
    assert len(token_N) > 1000
    assert not set(read_texts(lens.EVERYDAY)) & set(read_texts("pkg:mmalign.vlm/prose.txt"))


def test_it_is_kept_by_what_it_depends_on(model, monkeypatch):
    fits = []
    monkeypatch.setattr(lens, "fit", lambda vlm, layers, token_N: fits.append(layers) or fit(vlm, layers, token_N))
    first = lens_of(model, [0, 2, 1])
    again = lens_of(model, [1, 2])
    assert fits == [[1, 2]]
    assert all(torch.equal(first.maps[n], again.maps[n]) for n in (1, 2))
    lens_of(model, [1])
    lens_of(model, [1, 2], ["a red star"])
    with torch.no_grad():
        model.llm.vocabulary()[0, 0] += 1
    assert lens_of(model, [1, 2]).maps[1].shape == (model.llm.dim + 1, model.llm.dim)
    assert len(fits) == 4
    model.llm.vocabulary().data[0, 1] += 1  # past the counter of writes, as DeepSpeed does it
    lens_of(model, [1, 2])
    assert len(fits) == 5
    for kept in files.cache("readouts").glob("*.safetensors"):
        kept.write_bytes(b"damaged")
    lens_of(model, [1])
    assert len(fits) == 6


def test_a_layer_that_there_is_not(model):
    with pytest.raises(CheckError, match="no layer 9: the language model has 3"):
        lens_of(model, [1, 9])


def test_states_that_are_no_numbers_are_refused(model, monkeypatch):
    """As those of a model in fp16 that overflows."""
    states = control.states

    def broken(*args):
        for number_N, embed_ND, hidden in states(*args):
            hidden[2][0, 0] = float("nan")
            yield number_N, embed_ND, hidden

    monkeypatch.setattr(control, "states", broken)
    with pytest.raises(CheckError, match="states of layer 2 of the language model are no finite numbers") as caught:
        fit(model, [1, 2], word_tokens(model.llm))
    assert caught.value.fix == "precision: bf16 or fp32"
