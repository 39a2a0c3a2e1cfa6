"""The contrast of images and captions against its sums written out; whose means they are; two ranks against one."""

import math
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mmalign.errors import CheckError
from mmalign.objectives import Context, Step
from mmalign.objectives.caption_contrast import CaptionContrast

BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 3e-2}
SAMPLES = [0, 1, 1, 2, 3]  # of each image
LENGTHS = [4, 2, 0, 3]  # trained tokens of each sample


def make_step(dtype=torch.float64, images=5, seed=0, layer=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(5, 6, 8, generator=g).to(dtype).requires_grad_()
    caption = torch.randn(sum(LENGTHS), 8, generator=g).to(dtype).requires_grad_()
    caption_M = torch.tensor([n for n, length in enumerate(LENGTHS) for _ in range(length)])
    if not images:
        caption_M = caption_M[:0]
    step = Step(
        visual_BPD=hidden[:images], states={layer: hidden[:images]}, sample_B=torch.tensor(SAMPLES)[:images],
        captions={layer: caption[: len(caption_M)]}, caption_M=caption_M, seen_BP=torch.ones(5, 6) > 0,
    )  # fmt: skip
    step.seen_BP[1, 2:] = step.seen_BP[0, 0] = False
    step.seen_BP = step.seen_BP[:images]
    return step, hidden, caption


def prepared(layer=0, **settings):
    objective = CaptionContrast(layer, **settings)
    objective.prepare(Context(layers=4))
    return objective


def by_hand(hidden, caption, scale):
    """Sample by sample: the mean of its images' tokens that show picture, and that of its caption's."""
    pictures = [[0, 1, 2, 3, 4, 5] for _ in SAMPLES]
    pictures[0], pictures[1] = [1, 2, 3, 4, 5], [0, 1]
    visual, text, start = [], [], 0
    for sample, length in enumerate(LENGTHS):
        own = [hidden[b, p] for b, of in enumerate(SAMPLES) if of == sample for p in pictures[b]]
        said = [caption[start + n] for n in range(length)]
        start += length
        if own and said:
            visual.append(sum(own) / len(own))
            text.append(sum(said) / len(said))
    unit = [[one / one.norm() for one in side] for side in (visual, text)]
    alike = torch.stack([torch.stack([scale * v @ t for t in unit[1]]) for v in unit[0]])
    rows = range(len(alike))
    forth = sum(-(alike[i, i].exp() / alike[i].exp().sum()).log() for i in rows)
    back = sum(-(alike[i, i].exp() / alike[:, i].exp().sum()).log() for i in rows)
    return (forth + back) / (2 * len(alike))


@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_sums_and_their_gradients(dtype):
    step, hidden, caption = make_step(dtype)
    objective = prepared(temperature=0.5)
    if dtype == torch.float64:
        objective.double()
    exact = [one.detach().double().requires_grad_() for one in (hidden, caption, objective.log_scale)]
    want = by_hand(exact[0], exact[1], exact[2].exp()[0])
    want.backward()
    loss = objective(step)
    loss.backward()
    assert loss.item() == pytest.approx(want.item(), rel=BOUNDS[dtype])
    for own, other in zip((hidden, caption, objective.log_scale), exact, strict=True):
        assert (own.grad.double() - other.grad).norm() <= BOUNDS[dtype] * other.grad.norm()
    assert step.notes["captions"] == 3
    assert step.notes["caption_temperature"].item() == pytest.approx(0.5)


def test_without_images_there_is_a_way_back():
    step, hidden, caption = make_step(images=0)
    objective = prepared()
    loss = objective(step)
    loss.backward()
    assert loss == 0
    assert not hidden.grad.any()
    assert not caption.grad.any()
    assert not objective.log_scale.grad.any()


def test_one_pair_has_nothing_to_be_told_from():
    step, *_ = make_step()
    step.sample_B[:] = 0
    step.caption_M[:] = 0
    assert prepared()(step).item() == pytest.approx(0, abs=1e-6)


def test_the_layer_that_is_asked_for():
    step, *_ = make_step(layer=3)
    assert prepared(3)(step).item() == prepared()(make_step()[0]).item()
    assert prepared("last").state_layers == (4,)


def test_a_temperature_that_is_none():
    with pytest.raises(CheckError, match="temperature must be above 0, got 0"):
        CaptionContrast(temperature=0)
    assert CaptionContrast().log_scale.item() == pytest.approx(-math.log(0.07))


def _rank(rank, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    objective = CaptionContrast(gather=True)
    objective.prepare(Context(layers=4, distributed=True))
    step, hidden, _ = make_step(torch.float32, seed=rank)
    loss = objective(step)
    loss.backward()
    torch.save(
        {"loss": loss.detach(), "hidden": hidden.grad / 2, "pairs": step.notes["captions"]}, f"{folder}/{rank}.pt"
    )
    dist.destroy_process_group()


def test_gather_contrasts_all_ranks_pairs(tmp_path):
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    steps = [make_step(torch.float32, seed=rank) for rank in (0, 1)]
    both = Step(
        visual_BPD=torch.cat([s.visual_BPD for s, *_ in steps]), seen_BP=torch.cat([s.seen_BP for s, *_ in steps]),
        states={0: torch.cat([s.states[0] for s, *_ in steps])},
        captions={0: torch.cat([s.captions[0] for s, *_ in steps])},
        sample_B=torch.cat([steps[0][0].sample_B, steps[1][0].sample_B + 4]),
        caption_M=torch.cat([steps[0][0].caption_M, steps[1][0].caption_M + 4]),
    )  # fmt: skip
    loss = prepared()(both)
    loss.backward()
    for rank, (_, hidden, _) in zip(ranks, steps, strict=True):
        assert torch.allclose(rank["loss"], loss, rtol=1e-5)
        assert torch.allclose(rank["hidden"], hidden.grad, rtol=1e-4, atol=1e-6)
        assert rank["pairs"] == 6
