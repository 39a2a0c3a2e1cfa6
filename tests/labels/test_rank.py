"""The fast top words against the definition in fp64, on banks of every shape that hurts."""

import pytest
import torch
from torch.nn.functional import normalize

from mmalign.labels import rank, rough
from mmalign.labels.rank import Bank
from mmalign.labels.rough import Full, Half

HALVES = pytest.mark.parametrize("half", [True, False])


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


@HALVES
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
def test_ids_are_those_of_fp64(words, dim, angle, count, keep, centred, sign, half):
    text, patch = cone(words, dim, angle), patches(count, dim)
    mean = torch.rand(words, generator=torch.Generator().manual_seed(2)) * 0.1 if centred else None
    bank = Bank.of(text, mean, sign, half)
    words_NK, scores_NK = bank.best(patch, keep)
    want = definition(bank, patch, keep)
    assert (scores_NK - want.values).abs().max() < 1e-6
    gaps = want.values[:, :-1] - want.values[:, 1:]
    clear = torch.ones_like(words_NK, dtype=torch.bool)  # where fp32 itself can tell two words apart
    clear[:, :-1] &= gaps > 5e-7
    clear[:, 1:] &= gaps > 5e-7
    assert torch.equal(words_NK[clear], want.indices[clear])
    assert clear.float().mean() > 0.9


@HALVES
def test_a_bank_that_rounding_cannot_tell_apart_is_ranked_in_full(half):
    text = cone(15, 64, 0.5).repeat(400, 1)  # no candidate is better than the next
    bank, patch = Bank.of(text, half=half), patches(9, 64)
    asked = []
    plain = Bank.every
    try:
        Bank.every = lambda self, p, k: asked.append(len(p)) or plain(self, p, k)
        _, scores = bank.best(patch, 10)
    finally:
        Bank.every = plain
    assert (scores - definition(bank, patch, 10).values).abs().max() < 1e-6
    assert sum(asked) == 9


@HALVES
def test_memory_is_bounded_by_a_chunk_not_by_patches_times_words(half, monkeypatch):
    bank, patch = Bank.of(cone(3000, 32, 0.7), half=half), patches(50, 32)
    seen = []
    into = type(bank.rough).into
    monkeypatch.setattr(type(bank.rough), "into", lambda self, p, room: seen.append(len(p)) or into(self, p, room))
    monkeypatch.setitem(rank.LIMIT, "cpu", 7 * 4 * bank.columns)
    words, scores = bank.best(patch, 5)
    assert max(seen) == 7
    assert sum(seen) == 50
    assert torch.equal(words, definition(bank, patch, 5).indices)
    assert words.shape == scores.shape == (50, 5)


@HALVES
def test_calls_that_share_their_memory_do_not_mix(half):
    bank, many, few = Bank.of(cone(3000, 32, 0.7), half=half), patches(50, 32), patches(9, 32, seed=4)
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
    assert (rough._parts(value).float().sum(1) - value).abs().max() <= 1e-7 * value.abs().max()


def test_the_product_never_shows_in_the_labels():
    """Scores are the same to the last bit, so a run that goes on elsewhere, or a probe that errs, changes nothing."""
    text, patch = cone(9000, 96, 0.4), patches(60, 96)
    mean = torch.rand(9000, generator=torch.Generator().manual_seed(2)) * 0.1
    made = [Bank.of(text, mean, -1, half).best(patch, 10) for half in (True, False)]
    assert all(torch.equal(here, there) for here, there in zip(*made, strict=True))


@pytest.mark.parametrize("kind", [Half, Full])
@pytest.mark.parametrize(("words", "dim", "angle"), [(1000, 64, 0.5), (65, 33, 1.0), (640, 768, 0.05)])
@pytest.mark.parametrize("sign", [1, -1])
def test_no_rough_score_is_further_off_than_it_says(kind, words, dim, angle, sign):
    text, patch = cone(words, dim, angle), patches(20, dim)
    mean = torch.rand(words, generator=torch.Generator().manual_seed(2)) * 0.1
    multiplied, columns = kind(text, mean, sign), -(-words // rough.BLOCK) * rough.BLOCK
    scores = multiplied.into(patch, torch.empty(20, columns, dtype=multiplied.dtype))
    assert (scores.rough_NW[:, words:] == -torch.inf).all()
    true = sign * (patch.double() @ text.double().T - mean.double())
    each = scores.rough_NW[:, :words].double()
    off = (true - scores.shift_N[:, None].double() - each).abs()
    assert (off <= scores.lost_N[:, None] + scores.ulp * each.abs() + 1e-7).all()
    most = [scores.above(each.amax(1).float()), true.amax(1)]
    assert (most[0] + 1e-7 >= most[1]).all()


@pytest.mark.parametrize(("fast", "kind"), [(True, Half), (False, Full)])
def test_the_device_says_which_product(fast, kind, monkeypatch):
    monkeypatch.setattr(rank, "half_is_fast", lambda device: fast)
    bank = Bank.of(cone(3000, 32, 0.7))
    assert isinstance(bank.rough, kind)
    assert isinstance(bank.to(torch.device("cpu")).rough, kind)
