"""Regression to the vocabulary against the sums written out."""

from contextlib import contextmanager

import pytest
import torch

from mmalign.errors import CheckError
from mmalign.llms import rows as wide
from mmalign.objectives import Context, Step
from mmalign.objectives import vocabulary_regression as regression
from mmalign.objectives.lm import NextToken
from mmalign.objectives.vocabulary_regression import VocabularyRegression, mixtures, vocabulary_regression_loss
from tests import parts
from tests.objectives.test_basic import batch_of, build
from tests.speed._work import peak

# of value and gradient, at a temperature of 0.1; in bf16 unit vectors, shares and products are rounded
BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 3e-2}


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def mixture(token, embed, temperature):
    share = ((embed @ token) / token.norm() / embed.norm(dim=1) / temperature).exp()
    return sum(share[v] * embed[v] for v in range(len(embed))) / share.sum()


def by_hand(tokens, embed, counted, temperature, distance):
    total = torch.zeros((), dtype=torch.float64)
    for b in range(len(tokens)):
        gaps = []
        for i in range(tokens.shape[1]):
            if counted[b, i]:
                v, m = tokens[b, i], mixture(tokens[b, i].detach(), embed.detach(), temperature)
                gaps.append(
                    sum((v[d] - m[d]) ** 2 for d in range(len(v))) / len(v)
                    if distance == "l2"
                    else 1 - (v @ m) / v.norm() / m.norm()
                )
        total = total + (sum(gaps) / len(gaps) if gaps else 0)
    return total / len(tokens)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", [(2, 7, 8, 11), (3, 2, 5, 7), (1, 1, 4, 3)])
@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("chunk", [None, 3])
def test_the_sum_and_its_gradient(shape, distance, chunk, dtype, monkeypatch):
    if chunk:
        monkeypatch.setattr(wide, "LEAST", 1)
        monkeypatch.setitem(regression.LIMIT, "cpu", chunk * regression.BYTES * shape[3])
    tokens, embed = random(*shape[:3], dtype=dtype), random(shape[3], shape[2], dtype=dtype, seed=1)
    counted = torch.rand(shape[:2], generator=torch.Generator().manual_seed(2)) < 0.6
    if len(counted) > 1:
        counted[0] = False  # an image of which nothing counts is one of the images
    exact = tokens.detach().double().requires_grad_()
    want = by_hand(exact, embed.double(), counted, 0.1, distance)
    loss = vocabulary_regression_loss(tokens, embed, counted, temperature=0.1, distance=distance)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.item() == pytest.approx(want.item(), rel=BOUNDS[dtype])
    loss.backward()
    assert embed.grad is None  # words are constants
    if want.requires_grad:
        want.backward()
    slow = torch.zeros_like(exact) if exact.grad is None else exact.grad
    assert (tokens.grad.double() - slow).norm() <= BOUNDS[dtype] * slow.norm()


def test_the_lower_the_temperature_the_more_is_a_mixture_one_word():
    embed = random(9, 6).detach()
    tokens = 3 * embed[[4, 7]] + 0.1 * random(2, 6, seed=1).detach()
    assert torch.allclose(mixtures(tokens, embed, 1e-3), embed[[4, 7]])
    assert torch.allclose(mixtures(tokens, embed, 1e6), embed.mean(0).expand(2, -1), atol=1e-5)


def test_a_word_is_at_no_distance_and_of_a_longer_one_the_cosine_sees_nothing():
    embed = random(9, 6).detach()
    at_words, longer = embed[[4, 7]][None], 2 * embed[[4, 7]][None]
    assert vocabulary_regression_loss(at_words, embed, temperature=1e-3).item() == pytest.approx(0, abs=1e-12)
    l2, cosine = (vocabulary_regression_loss(longer, embed, temperature=1e-3, distance=d) for d in ("l2", "cosine"))
    assert l2.item() == pytest.approx(at_words.square().mean().item())
    assert cosine.item() == pytest.approx(0, abs=1e-12)


def test_a_row_of_zeros_and_a_token_of_zeros_are_no_trouble():
    """As rows are that no token has, and biases are at the start."""
    embed = random(9, 6).detach()
    embed[3] = 0
    tokens = torch.zeros(1, 2, 6, dtype=torch.float64, requires_grad=True)
    vocabulary_regression_loss(tokens, embed).backward()
    assert tokens.grad.isfinite().all()


def prepared(**settings):
    objective = VocabularyRegression(**settings)
    objective.prepare(Context(layers=4, dim=8))
    return objective


def make_step(images=2, dtype=torch.float64):
    tokens, embed, asked = random(2, 6, 8, dtype=dtype), random(11, 8, dtype=dtype, seed=1), []

    @contextmanager
    def vocabulary():
        asked.append("in")
        yield embed
        asked.append("out")

    return Step(visual_BPD=tokens[:images], vocabulary=vocabulary), tokens, embed, asked


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_padding_and_tokens_that_are_not_there_do_not_count(distance):
    step, tokens, embed, asked = make_step()
    step.seen_BP = torch.ones(2, 6, dtype=torch.bool)
    step.seen_BP[0, 4] = False
    step.real_BP = torch.ones(2, 6, dtype=torch.bool)
    step.real_BP[1, 3:] = False
    counted = step.seen_BP & step.real_BP
    loss = prepared(temperature=0.1, distance=distance)(step)
    assert loss.item() == pytest.approx(by_hand(tokens, embed, counted, 0.1, distance).item(), rel=1e-9)
    loss.backward()
    assert torch.equal(tokens.grad.abs().sum(-1) > 0, counted)
    assert asked == ["in", "out"]


def test_without_images_the_vocabulary_is_gathered_all_the_same():
    step, tokens, _, asked = make_step(images=0)
    loss = prepared()(step)
    loss.backward()
    assert loss == 0
    assert asked == ["in", "out"]
    assert not tokens.grad.any()


def test_the_most_that_is_held_does_not_grow_with_the_patches(monkeypatch):
    monkeypatch.setattr(wide, "LEAST", 16)
    monkeypatch.setitem(regression.LIMIT, "cpu", 1)
    held = {}
    for tokens in (16, 256):
        one, embed = random(1, tokens, 8, dtype=torch.float32), random(5000, 8, dtype=torch.float32, seed=1)
        held[tokens] = peak(lambda one=one, embed=embed: vocabulary_regression_loss(one, embed).backward())
    assert held[16] < 1.2 * 16 * 5000 * regression.BYTES
    assert held[256] < 1.2 * held[16]


def test_embeddings_of_half_precision_are_not_copied():
    tokens, embed = random(1, 4, 64, dtype=torch.float32), torch.randn(20_000, 64).bfloat16()
    held = peak(lambda: vocabulary_regression_loss(tokens, embed).backward())
    assert held < embed.numel() * 2


def test_in_a_model(tmp_path):
    """An image, none, two, one; and the gradient reaches the adapter alone."""
    folders = {"clip": parts.clip(tmp_path / "clip"), "llama": parts.llm("llama", tmp_path / "llama")}
    model = build(folders, "llama", lm=NextToken(), words=VocabularyRegression())
    model.freeze_all_but(["adapter", "llm"])
    model.train()
    seen = []
    model.objectives["words"].register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    terms, _ = model(batch_of(model, [0, 1, 2, 3]))
    (step,) = seen
    tokens, embed = (one.detach().double() for one in (step.visual_BPD, model.vlm.llm.vocabulary()))
    want = by_hand(tokens, embed, step.counted_BP, 0.01, "l2")
    assert terms["words"].item() == pytest.approx(want.item(), rel=1e-4)
    terms["words"].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.vlm.adapter.parameters())
    assert all(p.grad is None or not p.grad.any() for p in model.vlm.llm.parameters())
    assert model(batch_of(model, [1]))[0]["words"] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VocabularyRegression(temperature=0), "temperature must be above 0, got 0"),
        (lambda: VocabularyRegression(distance="l1"), "distance must be one of l2, cosine, got 'l1'"),
        (lambda: vocabulary_regression_loss(torch.ones(1, 2, 3), torch.ones(4, 3), temperature=-1), "above 0, got -1"),
        (lambda: vocabulary_regression_loss(torch.ones(1, 2, 3), torch.ones(4, 3), distance="l1"), "got 'l1'"),
        (lambda: vocabulary_regression_loss(torch.ones(2, 3), torch.ones(4, 3)), r"tokens have the shape \(2, 3\)"),
        (
            lambda: vocabulary_regression_loss(torch.ones(1, 2, 3), torch.ones(4, 3), torch.ones(1, 3)),
            r"which count \(1, 3\)",
        ),
        (
            lambda: vocabulary_regression_loss(torch.ones(1, 2, 3), torch.ones(4, 5)),
            "embeddings have 5 numbers each, visual tokens 3",
        ),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(CheckError, match=message):
        call()
