"""Emu's regression of the next visual token against the sum written out."""

import pytest
import torch
from torch.nn import functional as F

from mmalign.errors import CheckError
from mmalign.objectives import Context, Step
from mmalign.objectives.next_embedding import NextEmbedding, next_embedding_loss

# of value and gradient; in bf16 the tokens are rounded before we see them, what is left is the layer's own rounding
BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 3e-2}


def random(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def by_hand(predicted, tokens, counted, distance):
    total = torch.zeros((), dtype=torch.float64)
    for b in range(len(tokens)):
        gaps = []
        for i in range(tokens.shape[1] - 1):
            if counted[b, i + 1]:
                p, v = predicted[b, i], tokens[b, i + 1]
                gaps.append(
                    sum((p[d] - v[d]) ** 2 for d in range(len(v))) / len(v)
                    if distance == "l2"
                    else 1 - sum(p[d] * v[d] for d in range(len(v))) / p.norm() / v.norm()
                )
        total = total + (sum(gaps) / len(gaps) if gaps else 0)
    return total / len(tokens)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", [(2, 15, 8), (3, 2, 5), (1, 1, 4)])
@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_the_sum_and_its_gradients(shape, distance, dtype):
    predicted, tokens = random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=1)
    counted = torch.rand(shape[:2], generator=torch.Generator().manual_seed(2)) < 0.6
    counted[0] = False  # an image of which nothing is predicted counts among the images
    exact = [one.detach().double().requires_grad_() for one in (predicted, tokens)]
    want = by_hand(*exact, counted, distance)
    loss = next_embedding_loss(predicted, tokens, counted, distance=distance)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.item() == pytest.approx(want.item(), rel=BOUNDS[dtype])
    loss.backward()
    if want.requires_grad:
        want.backward()
    for own, other in zip((predicted, tokens), exact, strict=True):
        slow = torch.zeros_like(other) if other.grad is None else other.grad
        assert (own.grad.double() - slow).norm() <= BOUNDS[dtype] * slow.norm()


def prepared(dtype=torch.float32, **settings):
    torch.manual_seed(0)
    objective = NextEmbedding(**settings)
    objective.prepare(Context(layers=4, dim=8, dtype=dtype))
    return objective


def make_step(dtype=torch.float32, images=2):
    hidden, tokens = random(2, 6, 8, dtype=dtype), random(2, 6, 8, dtype=dtype, seed=1)
    return Step(visual_BPD=tokens[:images], states={4: hidden[:images]}), hidden, tokens


@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_layer_of_its_own_stands_between(dtype):
    objective = prepared(dtype)
    step, hidden, tokens = make_step(dtype)
    weight = objective.regress.weight
    assert weight.dtype == dtype
    exact = [one.detach().double().requires_grad_() for one in (hidden, weight)]
    want = by_hand(exact[0] @ exact[1].T, tokens.detach().double(), torch.ones(2, 6), "l2")
    want.backward()
    loss = objective(step)
    loss.backward()
    assert loss.item() == pytest.approx(want.item(), rel=BOUNDS[dtype])
    for own, other in zip((hidden, weight), exact, strict=True):
        assert (own.grad.double() - other.grad).norm() <= BOUNDS[dtype] * other.grad.norm()


def test_who_gets_a_gradient():
    step, hidden, tokens = make_step()
    prepared()(step).backward()
    assert tokens.grad is None  # constant targets
    assert hidden.grad[:, :-1].abs().sum(-1).all()
    assert not hidden.grad[:, -1].any()  # nothing stands behind the last token
    prepared(target="learned")(step).backward()
    assert not tokens.grad[:, 0].any()
    assert tokens.grad[:, 1:].abs().sum(-1).all()


def test_padding_and_tokens_that_are_not_there_are_not_predicted():
    step, hidden, tokens = make_step()
    step.seen_BP = torch.ones(2, 6, dtype=torch.bool)
    step.seen_BP[0, 4] = False
    step.real_BP = torch.ones(2, 6, dtype=torch.bool)
    step.real_BP[1, 3:] = False
    objective = prepared()
    loss = objective(step)
    want = by_hand(objective.regress(hidden), tokens, step.seen_BP & step.real_BP, "l2")
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    loss.backward()
    assert hidden.grad.abs().sum(-1).bool().tolist() == [[True] * 3 + [False, True, False], [True] * 2 + [False] * 4]


def test_a_pass_without_images_goes_through_the_layer():
    objective = prepared()
    step, hidden, _ = make_step(images=0)
    loss = objective(step)
    loss.backward()
    assert loss == 0
    assert not objective.regress.weight.grad.any()
    assert hidden.grad is not None


def test_prepared_twice_it_keeps_its_layer():
    objective = prepared()
    own = objective.regress
    objective.prepare(Context(layers=4, dim=8))
    assert objective.regress is own


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NextEmbedding(distance="l1"), "distance must be one of l2, cosine, got 'l1'"),
        (lambda: NextEmbedding(target="mean"), "target must be one of constant, learned, got 'mean'"),
        (
            lambda: next_embedding_loss(torch.ones(2, 3, 4), torch.ones(2, 4, 4)),
            r"shape \(2, 3, 4\), visual tokens \(2",
        ),
        (lambda: next_embedding_loss(torch.ones(3, 4), torch.ones(3, 4)), r"predictions have the shape \(3, 4\)"),
        (
            lambda: next_embedding_loss(*[torch.ones(2, 3, 4)] * 2, torch.ones(2, 4)),
            r"which count \(2, 4\)",
        ),
        (lambda: next_embedding_loss(*[torch.ones(2, 3, 4)] * 2, distance="l1"), "distance must be one of l2"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(CheckError, match=message):
        call()


def test_of_tokens_that_are_all_alike_the_cosine_is_blind_to_the_length():
    tokens = torch.ones(1, 4, 3)
    assert next_embedding_loss(5 * tokens, tokens, distance="cosine").item() == pytest.approx(0, abs=1e-6)
    assert next_embedding_loss(5 * tokens, tokens).item() == pytest.approx(16)
    assert F.mse_loss(5 * tokens, tokens).item() == pytest.approx(16)
