"""What padding is to SEA and BASIC: never drawn, no share, no gradient; or the paper's sums, where that is asked."""

import pytest
import torch

from mmalign.adapters.mlp import MLP
from mmalign.data import MARK, Data, Record, Turn
from mmalign.labels import LabelSource
from mmalign.llms.causal import CausalLM
from mmalign.objectives.basic import Direction, Distribution
from mmalign.objectives.sea import SEA, draw_patches
from mmalign.training.batches import BadSamples, Collate
from mmalign.vision.hf import HFVision
from mmalign.vlm.model import VLM
from mmalign.vlm.supervised import PassLabels, Supervised
from tests import parts
from tests.objectives.test_basic import by_hand
from tests.vision.test_frame import places

SIZES = [(40, 30), (30, 40), (80, 20)]
GRID = (8, 8)
PADDED = [2 * 8, 2 * 8, 6 * 8]  # a quarter of 8 rows or columns, and three quarters
WORDS = ["red", "blue", "star", "ring"]


class Pictures(Data):
    """One picture of each shape."""

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, number):
        turns = Turn("user", f"{MARK}\nWhat colour is the star?"), Turn("assistant", "red")
        return Record(f"r{number}", turns, (number,))

    def image(self, reference):
        return places(*SIZES[reference])


class Any(LabelSource):
    """A word for every patch there is, padding too."""

    words = WORDS

    def label(self, dense_NJ):
        return torch.arange(len(dense_NJ))[:, None] % 4, torch.ones(len(dense_NJ), 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("padded")
    return parts.clip(folder / "clip", size=24, patch=3), parts.llm("llama", folder / "llama")


def build(folders, fit="pad", **objectives):
    """The model, and a batch of a picture of each shape."""
    torch.manual_seed(0)
    clip, llama = map(str, folders)
    vision, llm = HFVision(clip, fit=fit), CausalLM(llama)
    vlm = VLM(vision, MLP(vision.dim, llm.dim, vision.grid), llm)
    for module in (llm.lm.get_input_embeddings(), vlm.adapter.layers[-1]):
        module.weight.data.mul_(30)  # so that the distributions differ by more than rounding
    source = Any()
    model = Supervised(vlm, objectives, PassLabels(vlm.word_embeddings(WORDS), source)).eval()
    model.prepare(False)
    collate = Collate(Pictures(), llm.chat, vision, vlm.tokens, 400, BadSamples(0), source=source, grid=vlm.grid)
    return model, collate.batch(range(len(SIZES)), seed=0)


def passed(model, batch, name):
    """The step as an objective saw it, and its term."""
    steps = []
    handle = model.objectives[name].register_forward_pre_hook(lambda _m, args: steps.append(args[0]))
    terms, _ = model(batch)
    handle.remove()
    return steps[0], terms[name]


def test_which_tokens_are_padding(folders):
    model, batch = build(folders)
    seen_BP = model.seen(batch).view(3, *GRID)
    assert (~seen_BP).flatten(1).sum(1).tolist() == PADDED
    assert seen_BP[0, 1:7].all() and seen_BP[1, :, 1:7].all() and seen_BP[2, 3:5].all()  # noqa: PT018
    model, batch = build(folders, "crop")
    assert model.seen(batch).all()


def test_sea_draws_no_padding_in_10_000_draws(folders):
    model, batch = build(folders, sea=SEA())
    step, _ = passed(model, batch, "sea")
    seen_N, drawn = step.seen_BP.flatten(), []
    while sum(map(len, drawn)) < 10_000:
        drawn.append(draw_patches(step.labels, 3, GRID, 2, step.random)[0])
    assert seen_N[torch.cat(drawn)].all()
    assert len(set(torch.cat(drawn).tolist())) == int(seen_N.sum())  # and every other patch
    windows = sum(len({(row // 2, column // 2) for row, column in seen_BP.nonzero().tolist()}) for seen_BP in
                  step.seen_BP.view(3, *GRID))  # fmt: skip
    assert {len(patch_N) for patch_N in drawn} == {windows}  # one of each that shows picture


@pytest.mark.parametrize("kind", [Direction, Distribution])
def test_basics_shares_are_of_what_is_picture(folders, kind):
    model, batch = build(folders, basic=kind())
    step, _ = passed(model, batch, "basic")
    _, share_BP = model.objectives["basic"].refined(step)
    raw_BP = step.shares[model.objectives["basic"].look]
    assert (share_BP[~step.seen_BP] == 0).all()
    assert share_BP.sum(1).tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    for share_P, raw_P, seen_P in zip(share_BP, raw_BP, step.seen_BP, strict=True):  # the others' proportions stay
        assert torch.allclose(share_P[seen_P], raw_P[seen_P] / raw_P[seen_P].sum(), atol=1e-6)
        assert raw_P[~seen_P].sum() > 0.1  # there was something to leave out


@pytest.mark.parametrize("subtract_mean", [False, True])
@pytest.mark.parametrize("kind", [SEA, Direction, Distribution])
def test_no_gradient_of_padding(folders, kind, subtract_mean):
    if kind is SEA and subtract_mean:
        pytest.skip("BASIC's setting")
    model, batch = build(folders, term=kind() if kind is SEA else kind(subtract_mean=subtract_mean))
    step, loss = passed(model, batch, "term")
    (gradient_BPD,) = torch.autograd.grad(loss, step.visual_BPD)
    assert (gradient_BPD[~step.seen_BP] == 0).all()
    assert (gradient_BPD[step.seen_BP].abs().sum(-1) > 0).float().mean() > (0.02 if kind is SEA else 0.99)


@pytest.mark.parametrize("term", [0, 1])
@pytest.mark.parametrize("padding", ["include", "exclude"])
def test_the_papers_sums_over_all_tokens_or_over_what_is_picture(folders, term, padding):
    objective = (Direction, Distribution)[term](padding=padding)
    model, batch = build(folders, basic=objective)
    step, loss = passed(model, batch, "basic")
    look = objective.look
    share_BP = step.shares[look]
    if padding == "exclude":
        share_BP = share_BP * step.seen_BP
        share_BP = share_BP / share_BP.sum(1, keepdim=True)
    exact_BPD = step.visual_BPD.detach().double().requires_grad_()
    with step.vocabulary() as embed_VD:
        want = by_hand(exact_BPD, step.refined[look], share_BP, embed_VD.detach())[term]
    assert loss.item() == pytest.approx(want.item(), rel=1e-3)  # fp32 of small numbers
    want.backward()
    (gradient_BPD,) = torch.autograd.grad(loss, step.visual_BPD)
    assert torch.allclose(gradient_BPD.double(), exact_BPD.grad, rtol=1e-3, atol=1e-7)
    assert (gradient_BPD[~step.seen_BP] == 0).all() == (padding == "exclude")


@pytest.mark.parametrize("kind", [Direction, Distribution])
def test_squares_are_as_they_were(folders, kind):
    """Bit for bit, where no token is padding."""
    terms = []
    for padding in ("include", "exclude"):
        model, batch = build(folders, "squash", basic=kind(padding=padding))
        terms.append(passed(model, batch, "basic")[1])
    assert torch.equal(*terms)


def test_a_pass_without_images(folders):
    model, batch = build(folders, sea=SEA(), basic=Direction())
    batch.pixels_B3SS = batch.frames = None
    batch.ids_RS[batch.ids_RS == model.vlm.llm.chat.mark] = 5
    assert model.seen(batch).shape == (0, 64)
    terms, _ = model(batch)
    assert terms["basic"] == terms["sea"] == 0
