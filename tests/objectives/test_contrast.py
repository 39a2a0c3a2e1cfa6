"""Symmetric InfoNCE against the paper's sums, written out; its bound; no pair at all."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from mmalign.objectives.contrast import MAX_SCALE, bounded, info_nce, similarities

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2}


def eq_9(visual, text, tau):
    """SEA's equations 8 and 9 as the paper writes them: sums of logarithms of shares."""
    n = len(visual)

    def phi(a, b):
        return math.exp(float(a.double() @ b.double()) / float(a.double().norm() * b.double().norm()) / tau)

    total = 0.0
    for i in range(n):
        total += math.log(phi(visual[i], text[i]) / sum(phi(visual[i], text[j]) for j in range(n)))
        total += math.log(phi(text[i], visual[i]) / sum(phi(text[i], visual[j]) for j in range(n)))
    return -total / (2 * n)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("pairs", "dim", "tau"), [(7, 16, 0.07), (1, 4, 1.0), (33, 5, 0.5)])
def test_eq_9(pairs, dim, tau, dtype):
    g = torch.Generator().manual_seed(5)
    visual = torch.randn(pairs, dim, generator=g).to(dtype)
    text = torch.randn(pairs, dim, generator=g)
    alike = similarities(normalize(visual.float(), dim=-1), normalize(text, dim=-1), torch.tensor([1 / tau]))
    assert info_nce(alike).item() == pytest.approx(eq_9(visual.float(), text, tau), rel=1e-6 / tau, abs=1e-6)


def test_the_scale_stops_at_its_bound():
    log_scale = torch.tensor([math.log(1 / 0.07), 9.0], requires_grad=True)
    scale = bounded(log_scale)
    assert scale.tolist() == pytest.approx([1 / 0.07, MAX_SCALE])
    assert bounded(log_scale.bfloat16()).dtype == torch.float32
    scale.sum().backward()
    assert log_scale.grad.tolist() == pytest.approx([1 / 0.07, 0])


def test_no_pair_is_a_zero_with_a_gradient_for_all_three():
    visual, text = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4, requires_grad=True)
    scale = torch.ones(1, requires_grad=True)
    loss = info_nce(similarities(visual, text, scale))
    loss.backward()
    assert loss.item() == 0
    assert visual.grad is not None
    assert text.grad is not None
    assert scale.grad.item() == 0
