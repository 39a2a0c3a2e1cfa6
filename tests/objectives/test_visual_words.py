"""VW-LMM's visual loss against the sum written out, token by token and word by word."""

from contextlib import contextmanager

import pytest
import torch

from mmalign.errors import CheckError
from mmalign.llms import LLM, vocabulary
from mmalign.llms import rows as wide
from mmalign.llms.vocabulary import vocabulary_kl
from mmalign.objectives import Context, Step
from mmalign.objectives.lm import NextToken
from mmalign.objectives.visual_words import VisualWords, visual_words_loss
from tests import parts
from tests.objectives.test_basic import batch_of, build
from tests.speed._work import peak

# of value and gradients; in bf16 all inputs are rounded before we see them, what is left is the logits' rounding
BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 4e-2}
SHAPES = [(2, 7, 8, 11), (3, 2, 5, 7), (1, 1, 4, 3)]


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def by_hand(hidden, tokens, head, words, counted, softcap=None):
    """Mean over images of the mean over predicted tokens of sum_v p_v log(p_v / q_v); fp64."""
    total = torch.zeros((), dtype=torch.float64)
    for b in range(len(tokens)):
        gaps = []
        for i in range(tokens.shape[1] - 1):
            if not counted[b, i + 1]:
                continue
            read, said = head @ hidden[b, i], words @ tokens[b, i + 1]
            read = softcap * torch.tanh(read / softcap) if softcap else read
            q, p = (side.exp() / side.exp().sum() for side in (read, said))
            gaps.append((p * (p / q).log()).sum())
        total = total + (sum(gaps) / len(gaps) if gaps else 0)
    return total / len(tokens)


def inputs(images, tokens, dim, vocab, dtype=torch.float64):
    rows = [random(images, tokens, dim, dtype=dtype, seed=seed) for seed in (0, 1)]
    return [*rows, *(random(vocab, dim, dtype=dtype, seed=seed) for seed in (2, 3))]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("chunk", [None, 3])
def test_the_sum_and_its_gradients(shape, softcap, chunk, dtype, monkeypatch):
    if chunk:
        monkeypatch.setattr(wide, "LEAST", 1)
        monkeypatch.setitem(vocabulary.LIMIT, "cpu", chunk * 8 * shape[3])
    own = inputs(*shape, dtype)
    counted = torch.rand(shape[:2], generator=torch.Generator().manual_seed(4)) < 0.6
    if len(counted) > 1:
        counted[0] = False  # an image of which nothing is predicted counts among the images
    exact = [one.detach().double().requires_grad_() for one in own]
    want, loss = by_hand(*exact, counted, softcap), visual_words_loss(*own, counted, softcap=softcap)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.item() == pytest.approx(want.item(), rel=BOUNDS[dtype])
    loss.backward()
    if want.requires_grad:
        want.backward()
    for one, other in zip(own, exact, strict=True):
        slow = torch.zeros_like(other) if other.grad is None else other.grad
        assert (one.grad.double() - slow).norm() <= BOUNDS[dtype] * slow.norm()


def test_all_tokens_count_where_nobody_says_which():
    own = inputs(2, 5, 4, 6)
    assert visual_words_loss(*own).item() == pytest.approx(by_hand(*own, torch.ones(2, 5)).item(), rel=1e-9)


def test_a_perfect_prediction_is_at_no_distance():
    hidden, tokens, head, _ = inputs(1, 5, 4, 6)
    hidden.data[:, :-1] = tokens.data[:, 1:]
    loss = visual_words_loss(hidden, tokens, head, head.detach())
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert hidden.grad.abs().max() < 1e-12


def prepared(embed, **settings):
    objective = VisualWords(**settings)
    objective.prepare(Context(layers=4, dim=embed.shape[1], dtype=embed.dtype, vocabulary=gathering(embed, [])))
    return objective


def gathering(embed, asked):
    @contextmanager
    def vocabulary():
        asked.append("in")
        yield embed
        asked.append("out")

    return vocabulary


def make_step(images=2, patches=6, dim=8, vocab=11, dtype=torch.float64):
    hidden, tokens, head, embed = inputs(2, patches, dim, vocab, dtype)
    asked = []

    def kl(hidden_ND, target_ND, target_VD, weight_N):
        asked.append("head")
        return vocabulary_kl(hidden_ND, target_ND, weight_N, head, target_VD)

    step = Step(visual_BPD=tokens[:images], states={4: hidden[:images]}, kl=kl, vocabulary=gathering(embed, asked))
    return step, hidden, tokens, head, embed, asked


@pytest.mark.parametrize("head", ["learned", "embeddings"])
@pytest.mark.parametrize("target", ["learned", "constant"])
def test_who_gets_a_gradient(head, target):
    step, hidden, tokens, lm_head, embed, asked = make_step()
    objective = prepared(embed, head=head, target=target)
    exact = [one.detach().requires_grad_() for one in (hidden, tokens, lm_head, embed)]
    want = by_hand(*exact, torch.ones(2, 6))
    want.backward()
    loss = objective(step)
    loss.backward()
    assert loss.item() == pytest.approx(want.item(), rel=1e-9)
    assert embed.grad is None  # the language model's embeddings are a constant, or what the VM head starts from
    assert (hidden.grad - exact[0].grad).norm() <= 1e-9 * exact[0].grad.norm()
    assert (lm_head.grad - exact[2].grad).norm() <= 1e-9 * exact[2].grad.norm()
    if target == "constant":
        assert tokens.grad is None
    else:
        assert (tokens.grad - exact[1].grad).norm() <= 1e-9 * exact[1].grad.norm()
        assert not tokens.grad[:, 0].any()  # nothing predicts an image's first token
    if head == "learned":
        assert asked == ["head"]
        assert (objective.words_VD.grad - exact[3].grad).norm() <= 1e-9 * exact[3].grad.norm()
    else:
        assert asked == ["in", "head", "out"]  # E is whole while it is read
        assert not list(objective.parameters())


def test_the_vm_head_starts_as_the_embeddings_and_is_its_own():
    embed = random(7, 4, dtype=torch.float32)
    objective = prepared(embed)
    assert torch.equal(objective.words_VD, embed)
    objective.words_VD.data.add_(1)
    assert not torch.equal(objective.words_VD, embed)
    own = objective.words_VD
    objective.prepare(Context(layers=4, dim=4, vocabulary=gathering(embed, [])))
    assert objective.words_VD is own  # prepared twice it keeps its head


def test_padding_and_tokens_that_are_not_there_are_not_predicted():
    step, hidden, tokens, head, embed, _ = make_step()
    step.seen_BP = torch.ones(2, 6, dtype=torch.bool)
    step.seen_BP[0, 4] = False
    step.real_BP = torch.ones(2, 6, dtype=torch.bool)
    step.real_BP[1, 3:] = False
    loss = prepared(embed)(step)
    want = by_hand(hidden, tokens, head, embed, step.seen_BP & step.real_BP)
    assert loss.item() == pytest.approx(want.item(), rel=1e-9)
    loss.backward()
    assert hidden.grad.abs().sum(-1).bool().tolist() == [[True] * 3 + [False, True, False], [True] * 2 + [False] * 4]
    assert tokens.grad.abs().sum(-1).bool().tolist() == [
        [False] + [True] * 3 + [False, True], [False] + [True] * 2 + [False] * 3
    ]  # fmt: skip


@pytest.mark.parametrize("head", ["learned", "embeddings"])
def test_a_pass_without_images_goes_through_both_heads(head):
    step, hidden, tokens, lm_head, embed, asked = make_step(images=0)
    objective = prepared(embed, head=head)
    loss = objective(step)
    loss.backward()
    assert loss == 0
    assert "head" in asked
    assert ("in" in asked) == (head == "embeddings")
    ways = [hidden, tokens, lm_head, *objective.parameters()]
    assert all(one.grad is not None and not one.grad.any() for one in ways)


def test_a_head_without_chunks_gives_the_same():
    """As of language models whose head has a bias."""
    step, hidden, tokens, head, embed, _ = make_step(dtype=torch.float32)

    class Plain:
        head = staticmethod(lambda rows: rows @ head.T)

    step.kl = lambda *given: LLM.kl(Plain(), *given)
    objective = prepared(embed)
    exact = [one.detach().double().requires_grad_() for one in (hidden, tokens, head, embed)]
    want = by_hand(*exact, torch.ones(2, 6))
    want.backward()
    loss = objective(step)
    loss.backward()
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    for one, other in zip((hidden, tokens, head, objective.words_VD), exact, strict=True):
        assert (one.grad - other.grad).norm() <= 1e-5 * other.grad.norm()


@pytest.mark.parametrize("head", ["learned", "embeddings"])
def test_the_most_that_is_held_does_not_grow_with_the_patches(head, monkeypatch):
    monkeypatch.setattr(wide, "LEAST", 16)
    monkeypatch.setitem(vocabulary.LIMIT, "cpu", 1)
    held = {}
    for images in (2, 16):
        step, hidden, tokens, lm_head, embed, _ = make_step(2, 60, 8, 5000, torch.float32)
        lm_head.requires_grad_(False)
        step.visual_BPD, step.states = tokens.repeat(images // 2, 1, 1), {4: hidden.repeat(images // 2, 1, 1)}
        objective = prepared(embed, head=head)
        held[images] = peak(lambda s=step, o=objective: o(s).backward())
    matrix = 5000 * 8 * 4
    assert held[2] < 1.3 * 16 * 5000 * 12 + (head == "learned") * 4 * matrix
    assert held[16] < 1.3 * held[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        "clip": parts.clip(tmp_path_factory.mktemp("clip")),
        **{f: parts.llm(f, tmp_path_factory.mktemp(f)) for f in ("llama", "gemma")},
    }


@pytest.mark.parametrize("family", ["llama", "gemma"])  # the second with tied embeddings
@pytest.mark.parametrize("head", ["learned", "embeddings"])
def test_in_a_model(folders, family, head):
    """An image, none, two, one: what its states, head and embeddings say, by hand."""
    model = build(folders, family, lm=NextToken(), words=VisualWords(head))
    model.freeze_all_but(["adapter", "llm"])
    model.train()
    llm, own = model.vlm.llm, model.objectives["words"]
    batch = batch_of(model, [0, 1, 2, 3])
    seen = []
    own.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    terms, _ = model(batch)
    (step,) = seen
    hidden, tokens = step.states[llm.depth], step.visual_BPD
    assert len(tokens) == 4
    whole = [hidden, tokens, llm.lm.get_output_embeddings().weight, llm.vocabulary()]
    want = by_hand(*[one.detach().double() for one in whole], step.counted_BP)
    assert terms["words"].item() == pytest.approx(want.item(), rel=1e-4, abs=1e-7)
    terms["words"].backward()
    for part in (model.vlm.adapter, llm.lm.base_model.layers, own):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())
    model.zero_grad()
    loss = model(batch_of(model, [1]))[0]["words"]
    assert loss == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in llm.lm.base_model.layers.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VisualWords(head="none"), "head must be one of learned, embeddings, got 'none'"),
        (lambda: VisualWords(target="mean"), "target must be one of learned, constant, got 'mean'"),
        (lambda: VisualWords().prepare(Context(layers=4)), "nobody here has input embeddings to start with"),
        (
            lambda: visual_words_loss(torch.ones(2, 3, 4), torch.ones(2, 4, 4), *[torch.ones(5, 4)] * 2),
            r"outputs have the shape \(2, 3, 4\), visual tokens \(2, 4, 4\)",
        ),
        (
            lambda: visual_words_loss(*[torch.ones(2, 3, 4)] * 2, *[torch.ones(5, 4)] * 2, torch.ones(2, 4)),
            r"which count \(2, 4\)",
        ),
        (
            lambda: visual_words_loss(*[torch.ones(2, 3, 4)] * 2, torch.ones(5, 4), torch.ones(6, 4)),
            r"the heads have the shapes \(5, 4\) and \(6, 4\)",
        ),
        (
            lambda: visual_words_loss(*[torch.ones(2, 3, 4)] * 2, *[torch.ones(5, 3)] * 2),
            r"\(5, 3\), visual tokens \(2, 3, 4\)",
        ),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(CheckError, match=message):
        call()
