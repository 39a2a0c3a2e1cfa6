"""The language-model loss: trained tokens only, each times its weight."""

import pytest
import torch

from mmalign.llms.head import Head, nll
from mmalign.objectives import Step
from mmalign.objectives.lm import NextToken


@pytest.mark.parametrize(("rows", "dim", "vocab"), [(7, 5, 11), (1, 3, 2)])
def test_mean_over_trained_tokens(rows, dim, vocab):
    g = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(rows, dim, generator=g), torch.randn(vocab, dim, generator=g)
    target, weight = torch.randint(vocab, (rows,), generator=g), torch.rand(rows, generator=g)
    step = Step(answer_ND=hidden, answer_N=target, weight_N=weight, nll=lambda h, *rest: nll(h, head, *rest))
    total = 0.0
    for n in range(rows):
        share = (head @ hidden[n]).softmax(0)[target[n]]
        total -= float(weight[n] * share.log())
    assert NextToken()(step).item() == pytest.approx(total / float(weight.sum()), rel=1e-5)


def test_no_trained_token():
    """0, and the head is gone through all the same, forth and back: under ZeRO-3 the other ranks wait in it."""
    hidden, head = torch.randn(0, 4, requires_grad=True), Head(4, 3, bias=False)
    of_tokens = lambda rows, *what: head(rows, lambda own, weight: nll(own, weight, *what))  # noqa: E731
    step = Step(answer_ND=hidden, answer_N=torch.zeros(0).long(), weight_N=torch.zeros(0), nll=of_tokens)
    loss = NextToken()(step)
    loss.backward()
    assert loss.item() == 0
    assert not head.weight.grad.any()


def test_a_missing_need_is_named():
    with pytest.raises(AttributeError, match="no weight_N; does the objective list it in `needs`"):
        NextToken()(Step())
