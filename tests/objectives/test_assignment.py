"""VLAP's assignment and prediction against the transport problem and the sums written out."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from mmalign.errors import CheckError
from mmalign.objectives import Context, assignment
from mmalign.objectives.assignment import Assignment, assign, assignment_loss
from tests.objectives.test_caption_contrast import LENGTHS, make_step
from tests.speed._work import peak

BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-1}  # of logits near 100


def by_hand(visual, text, embed, prior, temperature=0.1, epsilon=0.1, rounds=3):
    """Sinkhorn's scaling, number by number, without logarithms; the cross-entropies, word by word; fp64."""
    samples, words = range(len(visual)), range(len(embed))
    alike = [[[v @ e / e.norm() for e in embed] for v in side] for side in (visual, text)]
    targets = []
    for side in alike:
        plan = [[(side[n][v].detach() / epsilon).exp() for v in words] for n in samples]
        for _ in range(rounds):
            for v in words:
                whole = sum(plan[n][v] for n in samples)
                for n in samples:
                    plan[n][v] = plan[n][v] / whole * prior[v]
            for n in samples:
                whole = sum(plan[n])
                plan[n] = [number / whole / len(samples) for number in plan[n]]
        targets.append([[number * len(samples) for number in row] for row in plan])
    total = torch.zeros((), dtype=torch.float64)
    for side, target in ((alike[0], targets[1]), (alike[1], targets[0])):
        for n in samples:
            odds = [(side[n][v] / temperature).exp() for v in words]
            total = total - sum(target[n][v] * (odds[v] / sum(odds)).log() for v in words)
    return total / (2 * len(visual))


def pairs(samples, dim, vocab, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    visual, text = (F.normalize(torch.randn(samples, dim, generator=g), dim=-1).to(dtype) for _ in range(2))
    embed, prior = torch.randn(vocab, dim, generator=g).to(dtype), torch.rand(vocab, generator=g).softmax(0)
    return visual.requires_grad_(), text.requires_grad_(), embed.requires_grad_(), prior.double()


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", [(3, 8, 11), (5, 4, 7), (1, 3, 2)])
@pytest.mark.parametrize("rows", [4096, 3])
def test_the_sums_and_their_gradients(shape, rows, dtype, monkeypatch):
    monkeypatch.setattr(assignment, "ROWS", rows)
    visual, text, embed, prior = pairs(*shape, dtype)
    exact = [one.detach().double().requires_grad_() for one in (visual, text)]
    want = by_hand(*exact, embed.detach().double(), prior)
    want.backward()
    own = prior.to(torch.promote_types(dtype, torch.float32))
    loss = assignment_loss(visual, text, embed, own, temperature=0.1, epsilon=0.1)
    loss.backward()
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.item() == pytest.approx(want.item(), rel=BOUNDS[dtype])
    assert embed.grad is None  # words are constants
    for one, other in zip((visual, text), exact, strict=True):
        assert (one.grad.double() - other.grad).norm() <= BOUNDS[dtype] * other.grad.norm()


def test_in_the_end_every_sample_and_every_word_gets_its_share():
    alike, prior = torch.rand(4, 9, dtype=torch.float64), torch.rand(9, dtype=torch.float64).softmax(0)
    target = assign(alike, prior, 0.1, 500)
    assert torch.allclose(target.sum(1), torch.ones(4).double())
    assert torch.allclose(target.mean(0), prior, atol=1e-9)


def test_cosines_near_one_overflow_nothing():
    visual, *_, prior = pairs(3, 4, 6, torch.float32)
    loss = assignment_loss(visual, visual.detach(), visual.detach().repeat(2, 1), prior.float())
    loss.backward()
    assert loss.isfinite()
    assert visual.grad.isfinite().all()


def prepared(**settings):
    objective = Assignment(temperature=0.1, epsilon=0.1, **settings)
    objective.prepare(Context(layers=4))
    return objective


def test_the_objective_counts_the_words_of_its_captions():
    step, hidden, caption = make_step()
    embed = torch.randn(7, 8, dtype=torch.float64)
    step.caption_id_M = torch.tensor([1, 1, 1, 2, 3, 3, 0, 5, 1])
    step.vocabulary = lambda: nullcontext(embed)
    loss = prepared()(step)
    frequency = torch.tensor([1, 4, 1, 2, 0, 1, 0]).double() / 9
    tokens = [hidden[0, 1:], torch.cat([hidden[1, :2], hidden[2]]), hidden[4]]
    said = [caption[: LENGTHS[0]], caption[4:6], caption[6:]]
    visual, text = (F.normalize(torch.stack([one.mean(0) for one in side]), dim=-1) for side in (tokens, said))
    want = by_hand(visual, text, embed, (frequency / 0.25).softmax(0))
    assert loss.item() == pytest.approx(want.item(), rel=1e-9)
    assert step.notes["assigned"] == 3


def test_without_images_the_vocabulary_is_gathered_all_the_same():
    step, hidden, _ = make_step(images=0)
    asked = []
    step.caption_id_M = torch.zeros(0).long()
    step.vocabulary = lambda: asked.append(1) or nullcontext(torch.randn(7, 8))
    loss = prepared()(step)
    loss.backward()
    assert loss == 0
    assert asked == [1]
    assert not hidden.grad.any()


def test_embeddings_are_not_copied(monkeypatch):
    monkeypatch.setattr(assignment, "ROWS", 512)
    visual, text = (F.normalize(torch.randn(4, 64), dim=-1).requires_grad_() for _ in range(2))
    embed, prior = torch.randn(20_000, 64), torch.full((20_000,), 1 / 20_000)
    held = peak(lambda: assignment_loss(visual, text, embed, prior).backward())
    assert held < 20_000 * 4 * 4 * 14 < embed.numel() * 4


@pytest.mark.parametrize("name", ["temperature", "epsilon", "rounds"])
def test_mistakes(name):
    with pytest.raises(CheckError, match=f"{name} must be above 0, got 0"):
        Assignment(**{name: 0})
