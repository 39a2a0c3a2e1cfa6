"""The fast top words against the definition in fp64, on banks of every shape that hurts."""

import pytest
import torch
from torch.nn.functional import normalize

from mmalign.labels import rank
from mmalign.labels.rank import Bank


def cone(words, dim, angle, seed=0):
    """Unit vectors around a common direction, as text encoders give them."""
    g = torch.Generator().manual_seed(seed)
    axis = normalize(torch.randn(dim, generator=g), dim=0)
    return normalize(axis + angle * torch.randn(words, dim, generator=g) / dim**0.5, dim=-1)


def patches(count, dim, seed=1):
    return normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def definition(bank, patch, keep):
    """sign * (f.t - m) of every word, in fp64, then the best."""
    scores = bank.sign * (patch.double() @ bank.text_WJ.double().T - bank.mean_W.double())
    return scores.topk(min(keep, len(bank.text_WJ)), dim=1)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(
    ("words", "dim", "angle", "count", "keep"),
    [
        (5000, 64, 0.5, 37, 10),
        (4097, 96, 1.0, 5, 1),
        (900, 33, 0.2, 15, 25),
        (20000, 128, 0.05, 64, 10),
        (7, 8, 1.0, 3, 10),
    ],
)
def test_ids_are_those_of_fp64(words, dim, angle, count, keep, centred, sign):
    text, patch = cone(words, dim, angle), patches(count, dim)
    mean = torch.rand(words, generator=torch.Generator().manual_seed(2)) * 0.1 if centred else None
    bank = Bank.of(text, mean, sign)
    words_NK, scores_NK = bank.best(patch, keep)
    want = definition(bank, patch, keep)
    assert (scores_NK - want.values).abs().max() < 1e-6
    gaps = want.values[:, :-1] - want.values[:, 1:]
    clear = torch.ones_like(words_NK, dtype=torch.bool)  # where fp32 itself can tell two words apart
    clear[:, :-1] &= gaps > 5e-7
    clear[:, 1:] &= gaps > 5e-7
    assert torch.equal(words_NK[clear], want.indices[clear])
    assert clear.float().mean() > 0.9


def test_a_bank_that_rounding_cannot_tell_apart_is_ranked_in_full():
    text = cone(6000, 64, 1e-3)  # differences far below bf16
    bank, patch = Bank.of(text), patches(9, 64)
    asked = []
    plain = Bank.every
    try:
        Bank.every = lambda self, p, k: asked.append(len(p)) or plain(self, p, k)
        _, scores = bank.best(patch, 10)
    finally:
        Bank.every = plain
    assert (scores - definition(bank, patch, 10).values).abs().max() < 1e-6
    assert sum(asked) <= 9


def test_memory_is_bounded_by_a_chunk_not_by_patches_times_words(monkeypatch):
    bank, patch = Bank.of(cone(3000, 32, 0.7)), patches(50, 32)
    seen = []
    rough = Bank._rough
    monkeypatch.setattr(Bank, "_rough", lambda self, p: seen.append(len(p)) or rough(self, p))
    monkeypatch.setitem(rank.LIMIT, "cpu", 7 * 2 * len(bank.rough_WJ))
    words, scores = bank.best(patch, 5)
    assert max(seen) == 7
    assert sum(seen) == 50
    assert torch.equal(words, definition(bank, patch, 5).indices)
    assert words.shape == scores.shape == (50, 5)


def test_calls_that_share_their_memory_do_not_mix():
    bank, many, few = Bank.of(cone(3000, 32, 0.7)), patches(50, 32), patches(9, 32, seed=4)
    with torch.inference_mode():
        first = bank.best(many.clone(), 5)
    second = bank.best(few.requires_grad_(), 5)
    for (words, scores), patch in ((first, many), (second, few)):
        want = definition(bank, patch, 5)
        assert torch.equal(words, want.indices)
        assert (scores - want.values).abs().max() < 1e-6
    assert not second[1].requires_grad


def test_no_patch():
    words, scores = Bank.of(cone(3000, 32, 0.7)).best(torch.zeros(0, 32), 5)
    assert words.shape == scores.shape == (0, 5)


def test_three_bf16_parts_hold_an_fp32_number():
    value = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    assert (rank._parts(value).float().sum(1) - value).abs().max() <= 1e-7 * value.abs().max()
