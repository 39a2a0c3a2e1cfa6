"""ROSS's reconstruction of another encoder's features against the sums written out."""

import math
from itertools import pairwise

import pytest
import torch

from mmalign.errors import CardError, CheckError
from mmalign.objectives import Context
from mmalign.objectives.reconstruction import (
    BLOCKS,
    FREQUENCIES,
    STEPS,
    Reconstruction,
    denoising_loss,
    frequencies,
    kept,
    reconstruction_loss,
    standardized,
)  # fmt: skip
from tests.objectives import test_representation as other
from tests.objectives.test_representation import BOUNDS, ONES, Encoder, make_step, random, same

EPS = 1e-5  # of layer norms


def standard(rows):
    """Of one row: mean 0, variance 1."""
    mean = sum(rows) / len(rows)
    variance = sum((one - mean) ** 2 for one in rows) / len(rows)
    return [(one - mean) / (variance + EPS).sqrt() for one in rows]


def by_hand(predicted, features, counted, distance):
    total = torch.zeros((), dtype=torch.float64)
    for b in range(len(features)):
        gaps = []
        for i in range(features.shape[1]):
            if not counted[b, i]:
                continue
            p, v = predicted[b, i], features[b, i]
            if distance == "cosine":
                gaps.append(other.gap(p, v, "cosine"))
            else:
                goal = standard(list(v)) if distance == "l2" else v  # noise: as it is
                gaps.append(sum((p[c] - goal[c]) ** 2 for c in range(len(v))) / len(v))
        total = total + (sum(gaps) / len(gaps) if gaps else 0)
    return total / len(features)


def alpha_bar(time):
    """Of the variance what is left after `time` + 1 steps (arXiv 2102.09672, eq. 17), betas at most 0.999."""
    curve = [math.cos((t / STEPS + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(time + 2)]
    left = 1.0
    for before, after in pairwise(curve):
        left *= 1 - min(1 - after / before, 0.999)
    return left


def counted_of(shape):
    counted = torch.rand(shape[:2], generator=torch.Generator().manual_seed(2)) < 0.6
    counted[0] = len(counted) == 1  # an image of which nothing counts is counted among the images
    return counted


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", [(2, 15, 8), (3, 2, 5), (1, 1, 4)])
@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_the_regression_and_its_gradient(shape, distance, dtype):
    predicted, features = random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=1).detach()
    exact = predicted.detach().double().requires_grad_()
    want = by_hand(exact, features.double(), counted_of(shape), distance)
    loss = reconstruction_loss(predicted, features, counted_of(shape), distance=distance)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.item() == pytest.approx(want.item(), rel=BOUNDS[dtype])
    loss.backward()
    want.backward()
    same([predicted], [exact], BOUNDS[dtype])


def test_what_is_left_of_a_feature_after_each_step():
    left = kept()
    assert left.dtype == torch.float64
    assert len(left) == STEPS == 1000
    for time in (0, 1, 500, 998, 999):
        assert left[time].item() == pytest.approx(alpha_bar(time), rel=1e-9)
    assert (left.diff() < 0).all()
    assert left[0] > 0.999
    assert left[-1] < 1e-6


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", [(2, 15, 8), (3, 2, 5), (1, 1, 4)])
def test_the_denoising_and_its_gradients(shape, dtype):
    """The denoiser here is a product of all it is told."""

    def denoise(noisy, time, hidden):
        return noisy * hidden * (time[..., None].to(noisy) / STEPS - 0.3)

    hidden, features = random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=1).detach()
    noise = random(*shape, dtype=torch.promote_types(dtype, torch.float32), seed=2).detach()
    time = torch.randint(STEPS, shape[:2], generator=torch.Generator().manual_seed(3))
    exact, v, e = (one.detach().double() for one in (hidden, features, noise))
    exact.requires_grad_()
    noisy = torch.zeros(shape, dtype=torch.float64)
    for b in range(shape[0]):
        for i in range(shape[1]):
            left, clean = alpha_bar(int(time[b, i])), standard(list(v[b, i]))
            for c in range(shape[2]):
                noisy[b, i, c] = left**0.5 * clean[c] + (1 - left) ** 0.5 * e[b, i, c]
    want = by_hand(denoise(noisy, time.double(), exact), e, counted_of(shape), "noise")
    loss = denoising_loss(denoise, hidden, features, noise, time, counted_of(shape))
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.item() == pytest.approx(want.item(), rel=BOUNDS[dtype])
    loss.backward()
    want.backward()
    same([hidden], [exact], BOUNDS[dtype])


def prepared(dtype=torch.float32, **settings):
    torch.manual_seed(0)
    objective = Reconstruction(Encoder(), **{"width": 12, **settings})
    objective.prepare(Context(layers=4, dim=8, dtype=dtype))
    return objective


def step_of(objective, dtype=torch.float32, images=2):
    step, *rest = make_step(objective, dtype, images)
    step.random = torch.Generator().manual_seed(4)
    return step, *rest


def linear(weights, name, row):
    return weights[f"{name}.weight"] @ row + weights[f"{name}.bias"]


def silu(row):
    return row / (1 + (-row).exp())


def denoised(weights, noisy, time, hidden):
    """The noise expected in one token's feature."""
    norm = lambda row: torch.stack(standard(list(row)))  # noqa: E731
    paces = [10_000 ** (-n / (FREQUENCIES / 2)) for n in range(FREQUENCIES // 2)]
    told = torch.tensor([wave(time * pace) for wave in (math.cos, math.sin) for pace in paces], dtype=torch.float64)
    about = linear(weights, "time.2", silu(linear(weights, "time.0", told)))
    about = silu(about + linear(weights, "condition", norm(hidden)))
    row = linear(weights, "enter", noisy)
    width = len(row)
    for n in range(BLOCKS):
        shape = linear(weights, f"shapes.{n}", about)
        shift, scale, gate = shape[:width], shape[width : 2 * width], shape[2 * width :]
        inner = linear(weights, f"blocks.{n}.0", norm(row) * (1 + scale) + shift)
        row = row + gate * linear(weights, f"blocks.{n}.2", silu(inner))
    shape = linear(weights, "last", about)
    return linear(weights, "leave", norm(row) * (1 + shape[width:]) + shape[:width])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # what is drawn is fp32
def test_the_denoiser_token_by_token(dtype):
    """In bf16 its 5 layers and 4 norms round: 6 % of the gradient."""
    value, gradient = (1e-5, 1e-4) if dtype == torch.float32 else (3e-2, 6e-2)
    objective = prepared(dtype)
    step, hidden, features, known = step_of(objective, dtype)
    loss = objective(step)
    loss.backward()
    again = torch.Generator().manual_seed(4)
    noise = torch.randn(2, 6, 7, generator=again).double()
    time = torch.randint(STEPS, (2, 6), generator=again)
    weights = {name: p.detach().double().requires_grad_() for name, p in objective.head.named_parameters()}
    exact, clean = hidden.detach().double().requires_grad_(), standardized(features.double())
    rows = []
    for b in range(2):
        for i in range(6):
            left = alpha_bar(int(time[b, i]))
            noisy = left**0.5 * clean[b, i] + (1 - left) ** 0.5 * noise[b, i]
            rows.append(denoised(weights, noisy, int(time[b, i]), exact[b, i]))
    want = by_hand(torch.stack(rows).view(2, 6, 7), noise, known, "noise")
    want.backward()
    assert loss.item() == pytest.approx(want.item(), rel=value)
    assert (hidden.grad.double() - exact.grad).norm() <= gradient * exact.grad.norm()
    for name, p in objective.head.named_parameters():
        assert (p.grad.double() - weights[name].grad).norm() <= gradient * weights[name].grad.norm(), name


def test_the_regression_goes_through_a_projector():
    for distance in ("l2", "cosine"):
        objective = prepared(torch.float64, method="regression", distance=distance)
        step, hidden, features, known = step_of(objective, torch.float64)
        want = by_hand(objective.head(hidden), features, known, distance)
        assert objective(step).item() == pytest.approx(want.item(), rel=1e-9)


def test_a_time_is_told_by_its_waves():
    waves = frequencies(torch.tensor([[0, 7]]))
    assert waves.shape == (1, 2, FREQUENCIES)
    assert waves[0, 0].tolist() == [1.0] * (FREQUENCIES // 2) + [0.0] * (FREQUENCIES // 2)
    assert waves[0, 1, 0].item() == pytest.approx(math.cos(7))


@pytest.mark.parametrize("settings", [{}, {"method": "regression"}])
def test_tokens_without_a_feature_and_padding_get_no_gradient(settings):
    objective = prepared(**settings)
    step, hidden, *_ = step_of(objective)
    step.seen_BP = torch.ones(2, 6, dtype=torch.bool)
    step.seen_BP[1, :5] = False
    objective(step).backward()
    assert hidden.grad.abs().sum(-1).bool().tolist() == [[True] * 3 + [False] + [True] * 2, [False] * 5 + [True]]


@pytest.mark.parametrize("settings", [{}, {"method": "regression"}])
def test_a_pass_without_images_goes_through_its_layers(settings):
    objective = prepared(**settings)
    step, hidden, *_ = step_of(objective, images=0)
    loss = objective(step)
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in objective.parameters())
    assert hidden.grad is not None


def test_who_knows_the_feature_knows_the_noise():
    """What the outputs say is worth something: a denoiser that is told the feature does better than one that is not."""
    torch.manual_seed(0)
    losses = {}
    for told in (True, False):
        objective = Reconstruction(Encoder(4), width=32)
        objective.prepare(Context(layers=4, dim=8))
        adam = torch.optim.Adam(objective.parameters(), lr=1e-2)
        random_ = torch.Generator().manual_seed(0)
        for _ in range(60):
            features = torch.randn(4, 16, 4, generator=random_)
            hidden = torch.cat([features, features], -1) * told
            noise = torch.randn(4, 16, 4, generator=random_)
            time = torch.randint(STEPS, (4, 16), generator=random_)
            loss = denoising_loss(objective.head, hidden, features, noise, time)
            adam.zero_grad()
            loss.backward()
            adam.step()
        losses[told] = loss.item()
    assert losses[True] < 0.6 * losses[False]


def test_prepared_twice_it_keeps_its_layers():
    objective = prepared()
    own = objective.head
    objective.prepare(Context(layers=4, dim=8))
    assert objective.head is own
    assert objective.state_layers == (4,)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: prepared(method="vae"), CheckError, "method must be one of denoise, regression, got 'vae'"),
        (lambda: prepared(distance="smooth-l1"), CheckError, "distance must be one of l2, cosine, got 'smooth-l1'"),
        (lambda: prepared(width=-1), CardError, "width is a width of 1 or more, not -1"),
        (lambda: reconstruction_loss(ONES, ONES, distance="l1"), CheckError, "distance must be one of l2, cosine"),
        (lambda: reconstruction_loss(ONES, torch.ones(2, 3, 5)), CheckError, r"\(2, 3, 4\), features \(2, 3, 5\)"),
        (lambda: reconstruction_loss(ONES, ONES, torch.ones(2, 4)), CheckError, r"which count \(2, 4\)"),
    ],
)
def test_mistakes(call, error, message):
    with pytest.raises(error, match=message):
        call()
