"""The loss of tokens in the head's own call, against the definition row by row, value and gradients."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from mmalign.llms import LLM, head
from mmalign.llms import rows as wide
from mmalign.llms.causal import CausalLM
from mmalign.llms.head import Head, nll
from mmalign.testing import small
from tests.speed._work import peak


def slow(hidden, embed, token, weight, softcap):
    """-w log(e^l[t] / sum e^l), one row after another, by autograd."""
    total = torch.zeros((), dtype=torch.float64)
    for n in range(len(hidden)):
        logits = torch.stack([(hidden[n] * embed[v]).sum() for v in range(len(embed))])
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        total = total - weight[n] * (logits[token[n]].exp() / logits.exp().sum()).log()
    return total


def given(rows, dim, vocab, dtype):
    g = torch.Generator().manual_seed(0)
    hidden, embed = torch.randn(rows, dim, generator=g), torch.randn(vocab, dim, generator=g)
    token, weight = torch.randint(vocab, (rows,), generator=g), torch.rand(rows, generator=g)
    return hidden.to(dtype).requires_grad_(), embed.to(dtype).requires_grad_(), token, weight


def chunks(monkeypatch, rows, vocab):
    monkeypatch.setattr(wide, "LEAST", 1)
    monkeypatch.setitem(head.LIMIT, "cpu", rows * head.BYTES * vocab)


def off(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(("rows", "dim", "vocab"), [(15, 8, 33), (1, 4, 7), (9, 3, 2)])
@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_value_and_gradients(rows, dim, vocab, chunk, softcap, dtype, bound, monkeypatch):
    if chunk:
        chunks(monkeypatch, chunk, vocab)
    hidden, embed, token, weight = given(rows, dim, vocab, dtype)
    rows_, embed_ = (t.detach().double().requires_grad_() for t in (hidden, embed))
    want = slow(rows_, embed_, token, weight.double(), softcap)
    (3 * want).backward()
    loss = nll(hidden, embed, token, weight.to(torch.promote_types(dtype, torch.float32)), softcap)
    (3 * loss).backward()
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.item() == pytest.approx(want.item(), rel=bound)
    assert off(hidden.grad, rows_.grad) < bound
    assert off(embed.grad, embed_.grad) < bound


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_several_tokens_of_a_row_count_as_that_many_rows(softcap):
    hidden, embed, _, _ = given(6, 8, 11, torch.float64)
    token, weight = torch.randint(11, (6, 4)), torch.rand(6, 4, dtype=torch.float64)
    token[:, 1] = token[:, 0]  # the same one twice
    weight[2, 1:], weight[3] = 0, 0
    rows_, embed_ = (t.detach().requires_grad_() for t in (hidden, embed))
    want = sum(nll(rows_, embed_, token[:, t], weight[:, t], softcap) for t in range(4))
    want.backward()
    loss = nll(hidden, embed, token, weight, softcap)
    loss.backward()
    assert loss.item() == pytest.approx(want.item(), rel=1e-9)
    assert off(hidden.grad, rows_.grad) < 1e-9
    assert off(embed.grad, embed_.grad) < 1e-9
    assert not hidden.grad[3].any()
    assert nll(hidden[:0], embed, token[:0], weight[:0], softcap) == 0


def test_bf16_is_no_further_off_than_whole_fp32_logits():
    """Both round the two products' inputs and outputs to bf16, and nothing else."""
    hidden, embed, token, weight = given(60, 64, 501, torch.bfloat16)
    rows_, embed_ = (t.detach().double().requires_grad_() for t in (hidden, embed))
    ((rows_ @ embed_.T).log_softmax(-1)[torch.arange(60), token] * -weight).sum().backward()
    logits = (hidden @ embed.T).float()
    plain = torch.autograd.grad((logits.log_softmax(-1)[torch.arange(60), token] * -weight).sum(), [hidden, embed])
    nll(hidden, embed, token, weight).backward()
    for found, naive, exact in zip((hidden.grad, embed.grad), plain, (rows_.grad, embed_.grad), strict=True):
        assert off(found, exact) < 1.2 * off(naive, exact)


def test_sums_of_many_chunks_are_not_rounded_to_bf16(monkeypatch):
    """A head's gradient is added up in fp32: 256 chunks of one row are as near as one chunk."""
    found = []
    for rows in (256, 1):
        chunks(monkeypatch, rows, 7)
        hidden, embed, token, weight = given(256, 16, 7, torch.bfloat16)
        nll(hidden, embed, token, weight).backward()
        found.append(embed.grad)
    exact = given(256, 16, 7, torch.float64)
    rows_, embed_ = (t.detach().bfloat16().double().requires_grad_() for t in exact[:2])
    ((rows_ @ embed_.T).log_softmax(-1)[torch.arange(256), token] * -weight).sum().backward()
    whole, single = (off(grad, embed_.grad) for grad in found)
    assert single < 2 * whole


def test_far_off_logits_overflow_nothing():
    hidden, embed, token, weight = given(3, 4, 9, torch.float32)
    loss = nll(hidden * 1e4, embed, token, weight)
    loss.backward()
    assert math.isfinite(loss.item())
    assert hidden.grad.isfinite().all()


def test_what_learns_nothing_gets_nothing():
    hidden, embed, token, weight = given(5, 4, 9, torch.float32)
    nll(hidden, embed.detach(), token, weight).backward()
    assert hidden.grad is not None
    nll(hidden.detach(), embed, token, weight).backward()
    assert embed.grad is not None
    assert not nll(hidden.detach(), embed.detach(), token, weight).requires_grad


def test_the_most_that_is_held_does_not_grow_with_the_rows(monkeypatch):
    """A chunk's logits and their softmax, and the rows' gradient."""
    chunks(monkeypatch, 16, 5000)
    held = {}
    for rows in (16, 128):
        hidden, embed, token, weight = given(rows, 8, 5000, torch.float32)
        held[rows] = peak(lambda h=hidden, e=embed, t=token, w=weight: nll(h, e.detach(), t, w).backward())
    assert held[16] < 1.1 * 16 * 5000 * head.BYTES
    assert held[128] < 1.05 * held[16]


@pytest.mark.parametrize("kind", ["nll", "kl"])
@pytest.mark.parametrize("family", list(small.LLMS))
def test_every_language_models_loss_is_that_of_its_logits(tmp_path, family, kind):
    """With tied embeddings and logit soft-capping where it has them: gradients of all weights, from one call."""
    small.llm(family, tmp_path)
    mouth = CausalLM(str(tmp_path)).double()
    ids = torch.tensor([[3, 7, 9, 11, 4, 8]])
    weight = torch.tensor([0.5, 1.0, 0.0, 2.0, 1.0]).double()
    found = {}
    for name, whose in (("own", CausalLM), ("logits", LLM)):
        mouth.zero_grad()
        embeds = mouth.embed(ids)
        hidden = mouth(embeds, torch.ones_like(ids))[0, :-1]
        what = (ids[0, 1:],) if kind == "nll" else (50 * normalize(embeds[0, 1:], dim=-1), mouth.vocabulary())
        loss = getattr(whose, kind)(mouth, hidden, *what, weight)
        loss.backward()
        grads = {key: p.grad.clone() for key, p in mouth.named_parameters() if p.grad is not None}
        found[name] = (loss.item(), grads)
    assert isinstance(mouth.lm.get_output_embeddings(), Head) == (family != "phi")  # whose head has a bias
    assert found["own"][0] == pytest.approx(found["logits"][0], rel=1e-5)  # those in fp32
    assert found["own"][1].keys() == found["logits"][1].keys()
    for key, grad in found["own"][1].items():
        assert torch.allclose(grad, found["logits"][1][key], rtol=1e-4, atol=1e-6), key


def test_gemma_2_caps_its_logits(tmp_path):
    """The one family with `final_logit_softcapping` loses it nowhere."""
    small.llm("gemma2", tmp_path)
    mouth = CausalLM(str(tmp_path))
    assert mouth.softcap
    mouth.softcap, hidden = 1.0, 100 * torch.randn(4, mouth.dim, generator=torch.Generator().manual_seed(0))
    token, weight = torch.arange(4), torch.ones(4)
    assert mouth.head(hidden).abs().max() <= 1
    assert mouth.nll(hidden, token, weight).item() / 4 <= math.log(mouth.vocab) + 2
    sure = mouth.kl(hidden, 1e4 * mouth.vocabulary()[token], mouth.vocabulary(), weight)
    assert sure.item() / 4 <= math.log(mouth.vocab) + 2


def test_heads_of_another_kind_stay():
    biased, own = torch.nn.Linear(3, 5), torch.nn.Linear(3, 5, bias=False)
    Head.take(biased)
    Head.take(own)
    assert type(biased) is torch.nn.Linear
    assert type(own) is Head
    rows = torch.randn(2, 3)
    assert torch.equal(own(rows), rows @ own.weight.T)


def test_a_head_with_a_lora_update_is_asked_for_logits(tmp_path):
    pytest.importorskip("peft")
    small.llm("llama", tmp_path)
    mouth = CausalLM(str(tmp_path), lora=2, lora_targets=["lm_head"])
    mouth.prepare_training()
    for name, parameter in mouth.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    hidden, token, weight = torch.randn(3, mouth.dim), torch.tensor([4, 9, 2]), torch.ones(3)
    logits = mouth.head(hidden)
    assert not torch.allclose(logits, hidden @ mouth.lm.lm_head.base_layer.weight.T)
    want = -logits.log_softmax(-1)[torch.arange(3), token].sum()
    assert mouth.nll(hidden, token, weight).item() == pytest.approx(want.item(), rel=1e-5)
    near, words = torch.randn(3, mouth.dim), torch.randn(mouth.vocab, mouth.dim)
    want = torch.nn.functional.kl_div(logits.log_softmax(-1), (near @ words.T).softmax(-1), reduction="sum")
    assert mouth.kl(hidden, near, words, weight).item() == pytest.approx(want.item(), rel=1e-5)


def test_a_head_gives_a_loss_its_weight():
    """In the head's own call, where ZeRO-3 holds it whole."""
    own, rows, inside = Head(3, 5, bias=False), torch.randn(2, 3), []
    own.register_forward_pre_hook(lambda *_: inside.append("in"))
    own.register_forward_hook(lambda *_: inside.append("out"))
    loss = own(rows, lambda hidden, weight: inside.append("loss") or (hidden @ weight.T).sum())
    assert loss == own(rows).sum()
    assert inside[:3] == ["in", "loss", "out"]
