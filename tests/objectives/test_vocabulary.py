"""The chunked vocabulary KL against naive autograd from the definition, value and gradient."""

import pytest
import torch

from mmalign.llms import rows as wide
from mmalign.objectives import vocabulary
from mmalign.objectives.vocabulary import vocabulary_kl
from tests.speed._work import peak


def naive(visual, target, weight, embed):
    """Sum of weight * sum_v p log(p / q), by autograd."""
    p, q = (target @ embed.T).softmax(-1), (visual @ embed.T).softmax(-1)
    return (weight * (p * (p.log() - q.log())).sum(-1)).sum()


def random_inputs(rows, dim, vocab, dtype=torch.float64, scale=1.0):
    g = torch.Generator().manual_seed(0)
    pair = (torch.randn(rows, dim, generator=g) * scale, torch.randn(rows, dim, generator=g) * scale)
    visual, target = (tensor.to(dtype) for tensor in pair)
    weight, embed = torch.rand(rows, generator=g).to(dtype), torch.randn(vocab, dim, generator=g).to(dtype)
    return visual.requires_grad_(), target.requires_grad_(), weight.requires_grad_(), embed.requires_grad_()


SHAPES = [(15, 8, 33), (1, 4, 7), (50, 16, 1001), (9, 3, 2)]


@pytest.mark.parametrize(("rows", "dim", "vocab"), SHAPES)
@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_value_and_gradient(rows, dim, vocab, chunk, dtype, bound, monkeypatch):
    if chunk:
        monkeypatch.setattr(wide, "LEAST", 1)
        monkeypatch.setitem(vocabulary.LIMIT, "cpu", chunk * vocabulary.BYTES * vocab)
    inputs = random_inputs(rows, dim, vocab, dtype)
    exact = [t.detach().double().requires_grad_(n == 0) for n, t in enumerate(inputs)]
    want = naive(*exact)
    (3 * want).backward()
    loss = vocabulary_kl(*inputs)
    (3 * loss).backward()
    assert loss.item() == pytest.approx(want.item(), rel=bound, abs=bound)
    gap = (inputs[0].grad.double() - exact[0].grad).norm() / exact[0].grad.norm()
    assert gap < bound


def test_the_most_that_is_held_does_not_grow_with_the_batch(monkeypatch):
    """Three numbers of a chunk's logits, and the gradient; patches x vocabulary is never held."""
    monkeypatch.setattr(wide, "LEAST", 16)
    monkeypatch.setitem(vocabulary.LIMIT, "cpu", 1)
    held = {}
    for rows in (16, 128):
        inputs = random_inputs(rows, 8, 5000, torch.float32)
        held[rows] = peak(lambda inputs=inputs: vocabulary_kl(*inputs).backward())
    assert held[16] < 1.1 * 16 * 5000 * vocabulary.BYTES
    assert held[128] < 1.05 * held[16]


def test_a_far_off_logit_overflows_nothing():
    visual, target, weight, embed = random_inputs(3, 4, 9, torch.float32, scale=1e4)
    loss = vocabulary_kl(visual, target, weight, embed)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(visual.grad).all()


def test_only_the_visual_tokens_learn():
    inputs = random_inputs(6, 4, 9, torch.float32)
    vocabulary_kl(*inputs).backward()
    assert inputs[0].grad is not None
    assert all(t.grad is None for t in inputs[1:])


def test_equal_distributions_are_at_no_distance():
    visual, _, weight, embed = random_inputs(6, 4, 9, torch.float32)
    loss = vocabulary_kl(visual, visual.detach(), weight, embed)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert visual.grad.abs().max() < 1e-6


def test_large_logits_do_not_overflow():
    inputs = random_inputs(6, 4, 9, torch.float32, scale=1e4)
    loss = vocabulary_kl(*inputs)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(inputs[0].grad).all()
