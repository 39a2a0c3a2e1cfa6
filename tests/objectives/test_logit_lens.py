"""The logit lens loss against the paper's sum written out, token by token; its words, its pieces, its memory."""

import pytest
import torch
from torch.nn import functional as F

from mmalign.errors import CheckError
from mmalign.llms import LLM, head
from mmalign.llms import rows as wide
from mmalign.objectives import Context, Step, Words
from mmalign.objectives.logit_lens import LogitLens
from tests.speed._work import peak

BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 3e-2}
PIECES = torch.tensor([[3, -1, -1], [4, 5, -1], [4, 1, 6], [0, -1, -1], [-1, -1, -1]])  # the last word has none


def make_step(images=2, patches=15, dim=8, vocab=11, keep=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(images, patches, dim, generator=g).to(dtype).requires_grad_()
    table = torch.randn(vocab, dim, generator=g).to(dtype).requires_grad_()
    seen = torch.rand(images, patches, generator=g) < 0.8
    words = torch.randint(4, (images * patches, keep), generator=g)
    scores = torch.randn(images * patches, keep, generator=g).to(torch.promote_types(dtype, torch.float32))
    scores[::3] = -1  # no word
    step = Step(
        visual_BPD=hidden, seen_BP=seen, states={4: hidden}, normed=lambda rows: F.rms_norm(rows, (dim,)),
        labels=lambda patch_N: (words[patch_N], scores[patch_N]), words=Words(list("abcde"), PIECES, table.__getitem__),
        nll=lambda rows, token, weight: head.nll(rows, table, token, weight),
    )  # fmt: skip
    return step, hidden, table, words, scores


def by_hand(hidden, table, words, scores, seen, norm=None):
    """Mean over images and their labelled patches of the words' mean, by score, of the mean over pieces of -log p."""
    total = torch.zeros((), dtype=torch.float64)
    for b in range(len(hidden)):
        patches = []
        for p in range(hidden.shape[1]):
            n = b * hidden.shape[1] + p
            kept = [(int(w), float(s)) for w, s in zip(words[n], scores[n], strict=True) if s > 0]
            if not kept or not seen[b, p]:
                continue
            state = hidden[b, p] if norm is None else norm(hidden[b, p])
            log = (table @ state).exp()
            nll, whole = 0, sum(score for _, score in kept)
            for word, score in kept:
                pieces = [piece for piece in PIECES[word].tolist() if piece >= 0]
                nll = nll - score / whole * sum((log[piece] / log.sum()).log() for piece in pieces) / len(pieces)
            patches.append(nll)
        total = total + (sum(patches) / len(patches) if patches else 0)
    return total / len(hidden)


def prepared(layer="last", layers=4):
    objective = LogitLens(layer)
    objective.prepare(Context(layers=layers, dim=8))
    return objective


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", [(2, 15, 8, 11), (3, 5, 4, 7), (1, 1, 3, 9)])
@pytest.mark.parametrize("chunk", [None, 4])
def test_the_sum_and_its_gradients(shape, chunk, dtype, monkeypatch):
    if chunk:
        monkeypatch.setattr(wide, "LEAST", 1)
        monkeypatch.setitem(head.LIMIT, "cpu", chunk * head.BYTES * shape[3])
    step, hidden, table, words, scores = make_step(*shape, dtype=dtype)
    exact = [one.detach().double().requires_grad_() for one in (hidden, table)]
    want, loss = by_hand(*exact, words, scores, step.seen_BP), prepared()(step)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.item() == pytest.approx(want.item(), rel=BOUNDS[dtype])
    loss.backward()
    if want.requires_grad:
        want.backward()
        for own, other in zip((hidden, table), exact, strict=True):
            assert (own.grad.double() - other.grad).norm() <= BOUNDS[dtype] * other.grad.norm()


def test_layers_before_the_last_are_read_through_the_final_norm():
    step, hidden, table, words, scores = make_step()
    step.states = {2: hidden}
    want = by_hand(hidden, table, words, scores, step.seen_BP, norm=step.normed)
    assert prepared(2)(step).item() == pytest.approx(want.item(), rel=1e-9)
    step.states = {0: hidden}
    assert prepared(0)(step).item() == pytest.approx(want.item(), rel=1e-9)
    step.states = {4: hidden}
    assert prepared(4)(step).item() == prepared("last")(step).item() != pytest.approx(want.item(), rel=1e-3)


def test_one_word_of_one_piece_is_the_plain_likelihood():
    step, hidden, table, *_ = make_step(keep=1)
    step.seen_BP[:] = True
    step.labels = lambda patch_N: (torch.zeros(len(patch_N), 1).long(), torch.ones(len(patch_N), 1).double())
    want = F.cross_entropy((hidden @ table.T).flatten(0, 1), torch.full((30,), 3))
    assert prepared()(step).item() == pytest.approx(want.item(), rel=1e-9)


def test_a_head_without_chunks_gives_the_same():
    """As of language models whose head has a bias."""
    step, hidden, table, words, scores = make_step(dtype=torch.float32)
    want = by_hand(hidden, table, words, scores, step.seen_BP)

    class Plain:
        head = staticmethod(lambda rows: rows @ table.T)

    step.nll = lambda *given: LLM.nll(Plain(), *given)
    assert prepared()(step).item() == pytest.approx(want.item(), rel=1e-5)


def test_no_label_and_no_image_go_through_norm_and_head():
    for images, shift in ((2, -100), (0, 0)):
        step, hidden, table, words, scores = make_step(images=2)
        called = []
        step.visual_BPD, step.seen_BP = hidden[:images], step.seen_BP[:images]
        step.states = {2: hidden[:images]}
        step.labels = lambda patch_N, w=words, s=scores + shift: (w[patch_N], s[patch_N])
        norm, nll = step.normed, step.nll
        step.normed = lambda rows, own=norm, c=called: c.append("norm") or own(rows)
        step.nll = lambda *given, own=nll, c=called: c.append("nll") or own(*given)
        loss = prepared(2)(step)
        loss.backward()
        assert loss == 0
        assert called == ["norm", "nll"]
        assert not hidden.grad.any()
        assert not table.grad.any()


def test_the_most_that_is_held_does_not_grow_with_the_patches(monkeypatch):
    monkeypatch.setattr(wide, "LEAST", 16)
    monkeypatch.setitem(head.LIMIT, "cpu", 1)
    held = {}
    for images in (4, 16):
        step, _, table, *_ = make_step(images, 60, 8, 5000, dtype=torch.float32)
        objective = prepared()
        table.requires_grad_(False)
        held[images] = peak(lambda s=step, o=objective: o(s).backward())
    assert held[4] < 1.3 * 16 * 5000 * head.BYTES
    assert held[16] < 1.3 * held[4]


@pytest.mark.parametrize(
    ("layer", "what"), [(5, "layer is 5, and the language model has 4"), (-2, "got -2"), ("x", "'x'")]
)
def test_layers_that_there_are_not(layer, what):
    with pytest.raises(CheckError, match=what):
        prepared(layer)
