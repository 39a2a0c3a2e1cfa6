"""VIRAL's alignment with another encoder's features against the sum written out."""

import pytest
import torch

from mmalign.errors import CardError, CheckError
from mmalign.objectives import Context, Step, Targets
from mmalign.objectives.representation import Representation, representation_loss
from mmalign.vision import Vision

# of value and gradient; in bf16 the states are rounded before we see them, what is left is the projector's own rounding
BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 3e-2}
DISTANCES = ("cosine", "smooth-l1")


class Encoder(Vision):
    """Nothing but a width."""

    def __init__(self, dim=7):
        super().__init__()
        self.dim = dim


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def gap(p, v, distance):
    if distance == "cosine":
        return 1 - sum(p[c] * v[c] for c in range(len(v))) / p.norm() / v.norm()
    off = [(p[c] - v[c]).abs() for c in range(len(v))]
    return sum(0.5 * one**2 if one < 1 else one - 0.5 for one in off) / len(v)


def by_hand(projected, features, counted, distance):
    total = torch.zeros((), dtype=torch.float64)
    for b in range(len(features)):
        gaps = [gap(projected[b, i], features[b, i], distance) for i in range(features.shape[1]) if counted[b, i]]
        total = total + (sum(gaps) / len(gaps) if gaps else 0)
    return total / len(features)


def same(tensors, exact, bound):
    for own, other in zip(tensors, exact, strict=True):
        slow = torch.zeros_like(other) if other.grad is None else other.grad
        assert (own.grad.double() - slow).norm() <= bound * slow.norm()


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", [(2, 15, 8), (3, 2, 5), (1, 1, 4)])
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_sum_and_its_gradients(shape, distance, dtype):
    projected, features = random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=1)
    counted = torch.rand(shape[:2], generator=torch.Generator().manual_seed(2)) < 0.6
    counted[0] = len(counted) == 1  # an image of which nothing counts is counted among the images
    exact = [one.detach().double().requires_grad_() for one in (projected, features)]
    want = by_hand(*exact, counted, distance)
    loss = representation_loss(projected, features, counted, distance=distance)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.item() == pytest.approx(want.item(), rel=BOUNDS[dtype])
    loss.backward()
    want.backward()
    same((projected, features), exact, BOUNDS[dtype])


def prepared(dtype=torch.float32, **settings):
    torch.manual_seed(0)
    objective = Representation(Encoder(), **{"width": 12, **settings})
    objective.prepare(Context(layers=4, dim=8, dtype=dtype))
    return objective


def make_step(objective, dtype=torch.float32, images=2):
    """6 tokens an image; of the first image's fourth no feature is known."""
    tokens, features = random(2, 6, 8, dtype=dtype, seed=1), random(2, 6, 7, dtype=dtype, seed=2).detach()
    hidden = random(2, 6, 8, dtype=dtype)
    known = torch.ones(2, 6, dtype=torch.bool)
    known[0, 3] = False
    targets = {objective.encoders[0]: Targets(features[:images], known[:images])}
    step = Step(visual_BPD=tokens[:images], states={objective.state_layers[0]: hidden[:images]}, targets=targets)
    return step, hidden, features, known


@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_projector_of_its_own_stands_between(dtype):
    objective = prepared(dtype)
    step, hidden, features, known = make_step(objective, dtype)
    own = [hidden, *objective.parameters()]
    assert [p.dtype for p in own] == [dtype] * 7
    exact = [one.detach().double().requires_grad_() for one in own]
    rows, (w1, b1, w2, b2, w3, b3) = exact[0], exact[1:]
    for weight, bias in ((w1, b1), (w2, b2)):
        rows = rows @ weight.T + bias
        rows = rows * (1 / (1 + (-rows).exp()))
    want = by_hand(rows @ w3.T + b3, features.double(), known, "cosine")
    want.backward()
    loss = objective(step)
    loss.backward()
    assert loss.item() == pytest.approx(want.item(), rel=BOUNDS[dtype])
    same(own, exact, BOUNDS[dtype])


def test_states_that_are_their_features_are_at_no_distance():
    features = random(2, 5, 4).detach()
    assert representation_loss(3 * features, features).item() == pytest.approx(0, abs=1e-6)
    assert representation_loss(-features, features).item() == pytest.approx(2)
    assert representation_loss(features, features, distance="smooth-l1") == 0


def test_tokens_without_a_feature_padding_and_those_that_are_not_there_do_not_count():
    objective = prepared()
    step, hidden, features, known = make_step(objective)
    step.seen_BP = torch.ones(2, 6, dtype=torch.bool)
    step.seen_BP[0, 4] = False
    step.real_BP = torch.ones(2, 6, dtype=torch.bool)
    step.real_BP[1, 3:] = False
    loss = objective(step)
    want = by_hand(objective.project(hidden), features, known & step.seen_BP & step.real_BP, "cosine")
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    loss.backward()
    assert hidden.grad.abs().sum(-1).bool().tolist() == [[True] * 3 + [False] * 2 + [True], [True] * 3 + [False] * 3]


def test_a_pass_without_images_goes_through_the_projector():
    objective = prepared()
    step, hidden, *_ = make_step(objective, images=0)
    loss = objective(step)
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in objective.parameters())
    assert hidden.grad is not None


def test_half_the_depth_is_the_default():
    assert prepared().state_layers == (2,)
    assert prepared(layer=0).state_layers == (0,)
    assert prepared(layer="last").state_layers == (4,)
    assert Representation(Encoder()).width == 2048
    deep = Representation(Encoder(), width=1)
    deep.prepare(Context(layers=32, dim=8))
    assert deep.state_layers == (16,)


def test_prepared_twice_it_keeps_its_projector():
    objective = prepared()
    own = objective.project
    objective.prepare(Context(layers=4, dim=8))
    assert objective.project is own


ONES = torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Representation(Encoder(), distance="l2"), CheckError, "distance must be one of cosine, smooth-l1"),
        (lambda: Representation(Encoder(), width=0), CardError, "width is a width of 1 or more, not 0"),
        (lambda: prepared(layer=5), CheckError, "layer is 5, and the language model has 4"),
        (lambda: representation_loss(ONES, ONES, distance="l2"), CheckError, "distance must be one of cosine"),
        (lambda: representation_loss(ONES, torch.ones(2, 3, 5)), CheckError, r"\(2, 3, 4\), features \(2, 3, 5\)"),
        (lambda: representation_loss(ONES[0], ONES[0]), CheckError, r"predictions have the shape \(3, 4\)"),
        (lambda: representation_loss(ONES, ONES, torch.ones(2, 4)), CheckError, r"which count \(2, 4\)"),
    ],
)
def test_mistakes(call, error, message):
    with pytest.raises(error, match=message):
        call()
