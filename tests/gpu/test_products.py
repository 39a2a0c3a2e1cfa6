"""Losses over a vocabulary on a GPU against fp64: products of bf16 that keep fp32, value and gradient.

Letters: R rows, D width, V vocabulary.
"""

import pytest
import torch

from mmalign.llms import head, rows, vocabulary
from mmalign.llms.head import nll
from mmalign.llms.vocabulary import vocabulary_kl

pytestmark = pytest.mark.gpu
ROWS, DIM, VOCAB = 300, 192, 1111
DTYPES = [torch.float32, torch.bfloat16]
# of the value, of the gradient: relative. What is rounded before we see it is rounded for both; the gradient of rows is
# a product of bf16 probabilities, and comes back in bf16.
BOUNDS = {torch.float64: (1e-12, 1e-11), torch.float32: (1e-5, 2e-5), torch.bfloat16: (1e-3, 1e-2)}


def drawn(device, dtype, *shapes, scale=1.0):
    g = torch.Generator().manual_seed(0)
    return [(scale * torch.randn(shape, generator=g)).to(device, dtype) for shape in shapes]


def off(own, exact):
    return float((own.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_logits_are_rounded_to_no_less_than_fp32(device, dtype):
    rows_RD, embed_VD = drawn(device, dtype, (ROWS, DIM), (VOCAB, DIM))
    exact_RV = rows_RD.double() @ embed_VD.double().T
    logits_RV = rows.logits(rows_RD, embed_VD)
    assert logits_RV.dtype == torch.promote_types(dtype, torch.float32)
    whole = device.type == "cuda" or dtype not in (torch.bfloat16, torch.float16)
    assert off(logits_RV, exact_RV) < (1e-5 if whole else 1e-2)  # bf16 itself: 2e-3


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
def test_kl_and_its_gradient(device, dtype, monkeypatch):
    monkeypatch.setitem(vocabulary.LIMIT, device.type, 1)  # chunks of 128 rows
    visual_RD, target_RD, embed_VD = drawn(device, dtype, (ROWS, DIM), (ROWS, DIM), (VOCAB, DIM), scale=0.3)
    weight_R = torch.rand(ROWS, device=device)
    visual_RD.requires_grad_()
    exact_RD = visual_RD.detach().double().requires_grad_()
    log_p_RV, log_q_RV = ((x @ embed_VD.double().T).log_softmax(-1) for x in (target_RD.double(), exact_RD))
    want = (weight_R.double() * (log_p_RV.exp() * (log_p_RV - log_q_RV)).sum(1)).sum()
    want.backward()
    loss = vocabulary_kl(visual_RD, target_RD, weight_R, embed_VD)
    loss.backward()
    value, gradient = BOUNDS[dtype]
    assert loss.item() == pytest.approx(want.item(), rel=value if device.type == "cuda" else 3e-2)
    assert off(visual_RD.grad, exact_RD.grad) < (gradient if device.type == "cuda" else 4e-2)


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_the_loss_of_tokens_and_both_gradients(device, dtype, softcap, monkeypatch):
    monkeypatch.setitem(head.LIMIT, device.type, 1)
    hidden_RD, embed_VD = drawn(device, dtype, (ROWS, DIM), (VOCAB, DIM), scale=0.3)
    token_R, weight_R = torch.randint(VOCAB, (ROWS,), device=device), torch.rand(ROWS, device=device)
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden_RD, embed_VD)]
    own = [tensor.requires_grad_() for tensor in (hidden_RD, embed_VD)]
    logits_RV = exact[0] @ exact[1].T
    if softcap:
        logits_RV = softcap * (logits_RV / softcap).tanh()
    want = (weight_R.double() * torch.nn.functional.cross_entropy(logits_RV, token_R, reduction="none")).sum()
    want.backward()
    loss = nll(*own, token_R, weight_R, softcap)
    loss.backward()
    value, gradient = BOUNDS[dtype]
    assert loss.item() == pytest.approx(want.item(), rel=value if device.type == "cuda" else 3e-2)
    for tensor, reference in zip(own, exact, strict=True):
        assert off(tensor.grad, reference.grad) < (gradient if device.type == "cuda" else 4e-2)


def test_no_rows_no_loss_and_a_gradient_all_the_same(device):
    hidden_RD, embed_VD = drawn(device, torch.bfloat16, (0, DIM), (VOCAB, DIM))
    hidden_RD.requires_grad_()
    none_R = torch.zeros(0, device=device)
    nll(hidden_RD, embed_VD, none_R.long(), none_R).backward()
    assert hidden_RD.grad.shape == (0, DIM)
