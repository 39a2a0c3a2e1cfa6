"""Patch-aligned training against its cosines written out, patch by patch and word by word."""

import pytest
import torch

from mmalign.objectives import Step, Words, patch_words
from mmalign.objectives.patch_words import PatchWords, patch_words_loss
from tests.objectives.test_logit_lens import BOUNDS, PIECES
from tests.speed._work import peak


def make_step(images=2, patches=15, dim=8, keep=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    tokens = torch.randn(images, patches, dim, generator=g).to(dtype).requires_grad_()
    table = torch.randn(11, dim, generator=g).to(dtype).requires_grad_()
    seen = torch.rand(images, patches, generator=g) < 0.8
    words = torch.randint(4, (images * patches, keep), generator=g)
    scores = torch.randn(images * patches, keep, generator=g).to(torch.promote_types(dtype, torch.float32))
    scores[::3] = -1
    step = Step(
        visual_BPD=tokens, seen_BP=seen, labels=lambda patch_N: (words[patch_N], scores[patch_N]),
        words=Words(list("abcde"), PIECES, table.__getitem__),
    )  # fmt: skip
    return step, tokens, table, words, scores


def by_hand(tokens, table, words, scores, seen):
    total = torch.zeros((), dtype=torch.float64)
    for b in range(len(tokens)):
        patches = []
        for p in range(tokens.shape[1]):
            n, v = b * tokens.shape[1] + p, tokens[b, p]
            kept = [(int(w), float(s)) for w, s in zip(words[n], scores[n], strict=True) if s > 0]
            if kept and seen[b, p]:
                whole = sum(score for _, score in kept)
                texts = [torch.stack([table[i] for i in PIECES[w].tolist() if i >= 0]).mean(0) for w, _ in kept]
                cosines = [v @ t / v.norm() / t.norm() for t in texts]
                patches.append(sum(s / whole * (1 - cos) for (_, s), cos in zip(kept, cosines, strict=True)))
        total = total + (sum(patches) / len(patches) if patches else 0)
    return total / len(tokens)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", [(2, 15, 8), (3, 5, 4), (1, 1, 3)])
def test_the_cosines_and_their_gradient(shape, dtype):
    step, tokens, table, words, scores = make_step(*shape, dtype=dtype)
    exact = tokens.detach().double().requires_grad_()
    want = by_hand(exact, table.detach().double(), words, scores, step.seen_BP)
    loss = PatchWords()(step)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.item() == pytest.approx(want.item(), rel=BOUNDS[dtype])
    loss.backward()
    assert table.grad is None  # words are constants
    if want.requires_grad:
        want.backward()
        assert (tokens.grad.double() - exact.grad).norm() <= BOUNDS[dtype] * exact.grad.norm()


def test_tokens_that_are_their_word_are_at_no_distance():
    text, piece, share = torch.randn(4, 8), torch.arange(4)[:, None, None], torch.full((4, 1), 0.25)
    assert patch_words_loss(3 * text, text, piece, share).item() == pytest.approx(0, abs=1e-6)
    assert patch_words_loss(-text, text, piece, share).item() == pytest.approx(2)


@pytest.mark.parametrize(("images", "shift"), [(2, -100), (0, 0)])
def test_no_label_and_no_image_ask_for_embeddings_all_the_same(images, shift):
    step, tokens, table, words, scores = make_step()
    asked = []
    step.words.embed = lambda ids: asked.append(ids.shape) or table[ids]
    step.visual_BPD, step.seen_BP = tokens[:images], step.seen_BP[:images]
    step.labels = lambda patch_N: (words[patch_N], (scores + shift)[patch_N])
    loss = PatchWords()(step)
    loss.backward()
    assert loss == 0
    assert asked == [(0,)]
    assert not tokens.grad.any()


def test_words_of_all_patches_are_not_held_at_once(monkeypatch):
    """10 words of 3 pieces each, of 2,000 patches, would be 30 times what the patches themselves are."""
    monkeypatch.setattr(patch_words, "LIMIT", 1 << 16)
    tokens = torch.randn(2000, 64, requires_grad=True)
    piece, share = torch.randint(-1, 50, (2000, 10, 3)), torch.rand(2000, 10)
    held = peak(lambda: patch_words_loss(tokens, torch.randn(50, 64), piece, share).backward())
    assert held < 10 * tokens.numel() * 4


def test_some_patches_at_a_time_give_what_all_at_once_give(monkeypatch):
    tokens, embed = torch.randn(7, 8).double(), torch.randn(5, 8).double()
    piece, share = torch.randint(-1, 5, (7, 3, 2)), torch.rand(7, 3).double()
    whole = patch_words_loss(tokens, embed, piece, share)
    monkeypatch.setattr(patch_words, "LIMIT", 1)
    assert patch_words_loss(tokens, embed, piece, share).item() == pytest.approx(whole.item(), rel=1e-12)
