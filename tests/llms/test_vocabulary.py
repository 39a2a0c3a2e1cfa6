"""The chunked vocabulary KL against autograd of the definition, value and gradients."""

import pytest
import torch

from mmalign.llms import rows as wide
from mmalign.llms import vocabulary
from mmalign.llms.vocabulary import vocabulary_kl
from tests.speed._work import peak


def naive(own, target, weight, own_embed, target_embed, softcap=None):
    """Sum of weight * sum_v p log(p / q), row by row and word by word, for autograd to go through."""
    total = torch.zeros((), dtype=own.dtype)
    for n in range(len(own)):
        raw = torch.stack([(own[n] * row).sum() for row in own_embed])
        p, q = (
            (target_embed @ target[n]).softmax(-1),
            (softcap * (raw / softcap).tanh() if softcap else raw).softmax(-1),
        )
        total = total + weight[n] * sum(p[v] * (p[v] / q[v]).log() for v in range(len(p)))
    return total


def random_inputs(rows, dim, vocab, dtype=torch.float64, scale=1.0):
    g = torch.Generator().manual_seed(0)
    pair = (torch.randn(rows, dim, generator=g) * scale, torch.randn(rows, dim, generator=g) * scale)
    visual, target = (tensor.to(dtype) for tensor in pair)
    weight, embed = torch.rand(rows, generator=g).to(dtype), torch.randn(vocab, dim, generator=g).to(dtype)
    return visual.requires_grad_(), target.requires_grad_(), weight.requires_grad_(), embed.requires_grad_()


SHAPES = [(15, 8, 33), (1, 4, 7), (9, 3, 2)]
DTYPES = [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 4e-2)]


def off(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


def cut(monkeypatch, rows, vocab):
    monkeypatch.setattr(wide, "LEAST", 1)
    monkeypatch.setitem(vocabulary.LIMIT, "cpu", rows * 8 * vocab)


@pytest.mark.parametrize(("rows", "dim", "vocab"), SHAPES)
@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("at_once", [1, 70])  # numbers: a row, or some
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("dtype", "bound"), DTYPES)
def test_value_and_gradients(rows, dim, vocab, chunk, at_once, softcap, dtype, bound, monkeypatch):
    monkeypatch.setitem(vocabulary.NUMBERS, "cpu", at_once)
    if chunk:
        cut(monkeypatch, chunk, vocab)
    inputs = [*random_inputs(rows, dim, vocab, dtype), random_inputs(1, dim, 2 * vocab, dtype)[3].detach()[vocab:]]
    inputs[4].requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in inputs]
    want = naive(*exact, softcap)
    (3 * want).backward()
    loss = vocabulary_kl(*inputs, softcap)
    (3 * loss).backward()
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.item() == pytest.approx(want.item(), rel=bound, abs=bound)
    assert inputs[2].grad is None  # weights are constants
    for n in (0, 1, 3, 4):
        assert inputs[n].grad.dtype == dtype
        assert off(inputs[n].grad, exact[n].grad) < bound


@pytest.mark.parametrize("wanted", [(0,), (1,), (3,), (4,), (0, 4), (1, 3), ()])
def test_only_what_learns_gets_a_gradient(wanted):
    inputs = [*random_inputs(6, 4, 9), random_inputs(1, 4, 9)[3] * 2]
    inputs = [one.detach().requires_grad_(n in wanted) for n, one in enumerate(inputs)]
    every = [one.detach().clone().requires_grad_() for one in inputs]
    naive(*every).backward()
    loss = vocabulary_kl(*inputs)
    if not wanted:
        assert not loss.requires_grad
        return
    loss.backward()
    for n, one in enumerate(inputs):
        assert (one.grad is not None) == (n in wanted)
        assert n not in wanted or off(one.grad, every[n].grad) < 1e-9


def test_without_rows_every_way_back_is_there():
    inputs = [*random_inputs(3, 4, 9), torch.randn(9, 4, dtype=torch.float64, requires_grad=True)]
    own, target, weight, *embeds = inputs
    loss = vocabulary_kl(own[:0], target[:0], weight[:0], *embeds)
    loss.backward()
    assert loss == 0
    assert all(one.grad is not None and not one.grad.any() for one in (own, target, *embeds))


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_one_matrix_for_both_is_a_constant_to_the_target(softcap):
    own, target, weight, embed = random_inputs(5, 4, 9)
    rows, matrix = (one.detach().requires_grad_() for one in (own, embed))
    naive(rows, target.detach(), weight.detach(), matrix, embed.detach(), softcap).backward()
    vocabulary_kl(own, target.detach(), weight, embed, softcap=softcap).backward()
    assert off(own.grad, rows.grad) < 1e-9
    assert off(embed.grad, matrix.grad) < 1e-9


@pytest.mark.parametrize("wanted", [(0, 1), (0, 1, 3, 4)])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_with_all_gradients_no_more_is_held_for_more_rows(wanted, softcap, monkeypatch):
    monkeypatch.setitem(vocabulary.NUMBERS, "cpu", 5000)
    monkeypatch.setattr(wide, "LEAST", 16)
    monkeypatch.setitem(vocabulary.LIMIT, "cpu", 1)
    held = {}
    for rows in (16, 128):
        inputs = [*random_inputs(rows, 8, 5000, torch.float32), torch.randn(5000, 8)]
        inputs = [one.detach().requires_grad_(n in wanted) for n, one in enumerate(inputs)]
        held[rows] = peak(lambda inputs=inputs: vocabulary_kl(*inputs, softcap).backward())
    matrices = (len(wanted) > 2) * 5 * 5000 * 8 * 4  # of each a sum and a product, and one that backward() scales
    assert held[16] < 1.2 * 16 * 5000 * 8 + matrices
    assert held[128] < 1.1 * held[16] + matrices


def test_the_most_that_is_held_does_not_grow_with_the_batch(monkeypatch):
    """Two numbers of a chunk's logits, more of one row, and the gradient; patches x vocabulary is never held."""
    monkeypatch.setitem(vocabulary.NUMBERS, "cpu", 5000)
    monkeypatch.setattr(wide, "LEAST", 16)
    monkeypatch.setitem(vocabulary.LIMIT, "cpu", 1)
    held = {}
    for rows in (16, 128):
        inputs = random_inputs(rows, 8, 5000, torch.float32)
        inputs = inputs[0], *(one.detach() for one in inputs[1:])
        held[rows] = peak(lambda inputs=inputs: vocabulary_kl(*inputs).backward())
    assert held[16] < 1.2 * 16 * 5000 * 8
    assert held[128] < 1.05 * held[16]


@pytest.mark.parametrize(("rows", "vocab"), [(576, 32_000), (576, 128_256), (576, 256_000), (4608, 256_000)])
def test_chunks_are_thick_and_what_they_hold_is_bounded(rows, vocab):
    """By the products' rate, 144 rows or more; by memory, the limit, with any number of rows."""
    limit, most = vocabulary.LIMIT["cpu"], vocabulary.MOST["cpu"]
    cut = list(wide.chunks(rows, torch.empty(vocab, 0), vocabulary.LIMIT, vocabulary.held(torch.empty(0), None), most))
    sizes = [part.stop - part.start for part in cut]
    assert [n for part in cut for n in range(part.start, part.stop)] == list(range(rows))
    assert min(sizes) >= 128
    assert 144 <= max(sizes) <= 288
    assert 8 * max(sizes) * vocab <= limit


@pytest.mark.parametrize(("rows", "size", "cut"), [(7, 3, [3, 3, 1]), (9, 4, [3, 3, 3]), (300, 288, [150, 150])])
def test_no_chunk_is_a_thin_rest(rows, size, cut, monkeypatch):
    monkeypatch.setattr(wide, "LEAST", 1)
    found = list(wide.chunks(rows, torch.empty(10, 0), {"cpu": 100 * size}, 10))
    assert [part.stop - part.start for part in found] == cut


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("of_target", [False, True])
def test_a_few_rows_at_a_time_or_all_the_result_is_the_same_bits(softcap, of_target, monkeypatch):
    made = []
    for numbers in (1, 100, 10**9):
        monkeypatch.setitem(vocabulary.NUMBERS, "cpu", numbers)
        g = torch.Generator().manual_seed(0)
        own, target = (3 * torch.randn(11, 37, generator=g) for _ in range(2))
        kl = vocabulary.rows_kl(own, target, softcap, of_target)
        made.append([kl, own, *([target] if of_target else [])])
    assert all(torch.equal(one, other) for rest in made[1:] for one, other in zip(made[0], rest, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_logits_are_written_where_they_are_asked_for(dtype):
    g = torch.Generator().manual_seed(0)
    rows, embed = torch.randn(5, 8, generator=g).to(dtype), torch.randn(33, 8, generator=g).to(dtype)
    room = torch.empty(5, 33, dtype=torch.promote_types(dtype, torch.float32))
    found = wide.logits(rows, embed, room)
    assert found.data_ptr() == room.data_ptr()
    assert torch.equal(found, wide.logits(rows, embed))


def test_a_far_off_logit_overflows_nothing():
    visual, target, weight, embed = random_inputs(3, 4, 9, torch.float32, scale=1e4)
    loss = vocabulary_kl(visual, target, weight, embed)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(visual.grad).all()


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
