"""SEA against the paper's sums, written out; its samplers against their stated distributions."""

import math
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mmalign.errors import CheckError
from mmalign.labels import PatchLabels
from mmalign.objectives import Context, Step, Words
from mmalign.objectives.contrast import MAX_SCALE, info_nce, similarities
from mmalign.objectives.sea import SEA, draw, draw_patches, draw_words, joined, once_each, sea_loss
from tests.objectives.test_contrast import TOLERANCE, eq_9

GRIDS = [(4, 4, 2), (24, 24, 2), (27, 27, 2), (5, 3, 2), (3, 3, 1), (2, 7, 4), (1, 1, 3)]


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labelled(scores_BPK, words_BPK):
    words_NK, scores_NK = words_BPK.flatten(0, 1), scores_BPK.flatten(0, 1)
    return lambda patch_N: (words_NK[patch_N], scores_NK[patch_N])


def random_labels(images, grid, keep=3, words=10**9, shift=0.5, seed=0):
    g = stream(seed)
    shape = (images, grid[0] * grid[1], keep)
    return torch.randn(shape, generator=g) - shift, torch.randint(words, shape, generator=g)


@pytest.mark.parametrize(("rows", "columns", "window"), GRIDS)
def test_one_labelled_patch_from_every_window_that_has_one(rows, columns, window):
    scores, words = random_labels(3, (rows, columns))
    patch_N, words_NK, scores_NK = draw_patches(labelled(scores, words), 3, (rows, columns), window, stream())
    assert torch.equal(words_NK, words.flatten(0, 1)[patch_N])
    assert (scores_NK.amax(1) > 0).all()

    def window_of(patch):
        b, p = divmod(patch, rows * columns)
        return b, p // columns // window, p % columns // window

    seen = [window_of(p) for p in patch_N.tolist()]
    live = {window_of(p) for p in range(3 * rows * columns) if scores.flatten(0, 1)[p].max() > 0}
    assert len(seen) == len(set(seen))
    assert set(seen) == live


def test_no_label_anywhere_and_no_image():
    scores, words = random_labels(2, (4, 4), shift=100)
    assert not len(draw(labelled(scores, words), 2, (4, 4), 2, stream())[0])
    assert not len(draw(labelled(scores, words), 0, (4, 4), 2, stream())[0])


def test_labels_made_bit_by_bit_draw_what_labels_made_at_once_draw():
    scores, words = random_labels(4, (9, 7), shift=0.9, words=40)
    asked: list[int] = []

    def online(patch_N):
        asked.extend(patch_N.tolist())
        return labelled(scores, words)(patch_N)

    at_once = draw(labelled(scores, words), 4, (9, 7), 2, stream(3))
    bit_by_bit = draw(online, 4, (9, 7), 2, stream(3))
    assert all(torch.equal(a, b) for a, b in zip(at_once, bit_by_bit, strict=True))
    assert len(asked) == len(set(asked)) < 4 * 63  # no patch twice, and not all of them


def chi_square(counts: Counter, expected: dict) -> float:
    assert set(counts) <= set(expected)
    return sum((counts[k] - e) ** 2 / e for k, e in expected.items())


def test_patches_of_a_window_are_equally_likely_and_unlabelled_ones_never_drawn():
    rounds, grid = 4000, (3, 3)  # windows of 2: 4, 2, 2 and 1 patches
    scores = torch.ones(1, 9, 1)
    scores[0, 4] = 0  # one of the first window's four has no label
    counts: Counter = Counter()
    g = stream(1)
    for _ in range(rounds):
        counts.update(draw_patches(labelled(scores, torch.zeros(1, 9, 1).long()), 1, grid, 2, g)[0].tolist())
    expected = {0: rounds / 3, 1: rounds / 3, 3: rounds / 3, 2: rounds / 2, 5: rounds / 2, 6: rounds / 2, 7: rounds / 2}
    assert counts.pop(8) == rounds
    assert chi_square(counts, expected) < 20.5  # 5 degrees of freedom, p = 0.001


def test_words_are_drawn_in_proportion_to_their_positive_scores():
    scores = torch.tensor([[0.3, 0.1, -0.5, 0.6, 0.0]])
    rounds, g = 6000, stream(2)
    words = torch.arange(5).expand(rounds, 5)
    counts = Counter(draw_words(words, scores.expand(rounds, 5), g).tolist())
    assert chi_square(counts, {0: 0.3 * rounds, 1: 0.1 * rounds, 3: 0.6 * rounds}) < 13.8  # 2 degrees, p = 0.001


def test_a_word_is_kept_once_at_a_place_chosen_at_random():
    word_N = torch.tensor([7, 3, 7, 7, 5, 3])
    g, where = stream(4), Counter()
    for _ in range(3000):
        kept = once_each(word_N, g)
        assert sorted(word_N[kept].tolist()) == [3, 5, 7]
        where.update(kept.tolist())
    assert chi_square(where, {0: 1000, 2: 1000, 3: 1000, 1: 1500, 5: 1500, 4: 3000}) < 20.5


@pytest.mark.parametrize(("images", "grid", "words"), [(3, (5, 3), 4), (2, (27, 27), 30), (1, (4, 4), 1)])
def test_no_word_twice(images, grid, words):
    scores, numbers = random_labels(images, grid, words=words, shift=0)
    for seed in range(20):
        _, word_N = draw(labelled(scores, numbers), images, grid, 2, stream(seed))
        assert len(set(word_N.tolist())) == len(word_N)


def make_step(images=2, grid=(5, 3), dim=16, words=50, dtype=torch.float32, seed=0):
    g = stream(seed)
    scores, numbers = random_labels(images, grid, words=words, shift=0.2, seed=seed)
    table = torch.randn(200, dim, generator=g)
    pieces = torch.randint(200, (words, 3), generator=g)
    pieces[torch.rand(words, generator=g) < 0.5, 2] = -1
    pieces[torch.rand(words, generator=g) < 0.3, 1:] = -1
    visual = torch.randn(images, grid[0] * grid[1], dim, generator=g).to(dtype).requires_grad_()
    spelled = Words([str(n) for n in range(words)], pieces, lambda ids: table.to(dtype)[ids])
    step = Step(visual_BPD=visual, grid=grid, labels=labelled(scores, numbers), words=spelled, random=stream(seed + 1))
    return step, labelled(scores, numbers), table, pieces


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("grid", "window"), [((5, 3), 2), ((27, 27), 2), ((4, 4), 3)])
def test_the_whole_objective_equals_the_paper_loop_by_loop(grid, window, dtype):
    step, labels, table, pieces = make_step(grid=grid, dtype=dtype)
    sea = SEA(window, temperature=0.2)
    loss = sea(step)
    patch_N, word_N = draw(labels, 2, grid, window, stream(1))
    visual = [step.visual_BPD.detach().float().reshape(-1, 16)[p] for p in patch_N.tolist()]
    text = []
    for word in word_N.tolist():  # eq. 7: the mean of its sub-tokens' embeddings
        own = [table.to(dtype).float()[t] for t in pieces[word].tolist() if t >= 0]
        text.append(sum(own) / len(own))
    assert loss.item() == pytest.approx(eq_9(visual, text, 0.2), rel=1e-5)
    assert step.notes["pairs"] == len(word_N)
    assert step.notes["temperature"].item() == pytest.approx(0.2, rel=1e-6)
    loss.backward()
    touched = step.visual_BPD.grad.reshape(-1, 16).abs().sum(1).nonzero()[:, 0].tolist()
    assert sorted(touched) == sorted(patch_N.tolist())  # only what was drawn learns
    assert sea.log_scale.grad is not None


def label_tensors(step, words=50):
    """A step's labels as `PatchLabels`."""
    images, patches = step.visual_BPD.shape[:2]
    numbers, scores = step.labels(torch.arange(images * patches))
    shape = (images, patches, -1)
    return PatchLabels([str(n) for n in range(words)], numbers.view(shape), scores.view(shape), step.grid)


@pytest.mark.parametrize("dtype", [torch.float64, *TOLERANCE])
@pytest.mark.parametrize(("images", "grid", "window"), [(3, (5, 3), 2), (2, (27, 27), 2), (2, (4, 4), 3)])
def test_the_loss_as_a_function_of_plain_tensors_equals_the_paper_loop_by_loop(images, grid, window, dtype):
    step, _, table, pieces = make_step(images, grid, dtype=dtype)
    labels = label_tensors(step)
    labels.scores_BPK[0] -= 100  # an image without labels
    step.labels = labels.at
    text = step.words[torch.arange(50)].requires_grad_()
    assert torch.equal(text[[7]], step.words[torch.tensor([7])])
    tokens = step.visual_BPD
    loss = sea_loss(tokens, labels, text, window=window, temperature=0.2, generator=stream(1))
    patch_N, word_N = draw(labels.at, images, grid, window, stream(1))
    assert len(word_N)
    visual = tokens.detach().float().reshape(-1, 16)[patch_N]
    own = [[table.to(dtype).float()[piece] for piece in pieces[word].tolist() if piece >= 0] for word in word_N]
    assert loss.item() == pytest.approx(eq_9(visual, [sum(of_word) / len(of_word) for of_word in own], 0.2), rel=1e-5)
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    assert torch.equal(loss, sea_loss(tokens, labels, step.words, window=window, temperature=0.2, generator=stream(1)))
    assert loss.item() == pytest.approx(SEA(window, temperature=0.2)(step).item(), rel=1e-6)
    loss.backward()
    touched = tokens.grad.reshape(-1, 16).abs().sum(1).nonzero()[:, 0].tolist()
    assert sorted(touched) == sorted(patch_N.tolist())
    assert sorted(text.grad.abs().sum(1).nonzero()[:, 0].tolist()) == sorted(word_N.tolist())


def test_its_temperature_may_be_learned_and_is_bounded_as_the_objective_s():
    step, *_ = make_step()
    sea = SEA(temperature=0.2)
    sea(step).backward()
    log_temperature = torch.tensor([math.log(0.2)], requires_grad=True)
    labels = label_tensors(step)
    sea_loss(step.visual_BPD, labels, step.words, temperature=log_temperature.exp(), generator=stream(1)).backward()
    assert -log_temperature.grad.item() == pytest.approx(sea.log_scale.grad.item(), rel=1e-5)
    low = [sea_loss(step.visual_BPD, labels, step.words, temperature=t, generator=stream(1)) for t in (1e-9, 0.01)]
    assert torch.equal(*low)


def test_draws_without_a_generator_are_torch_s_own():
    step, *_ = make_step()
    torch.manual_seed(5)
    loss = sea_loss(step.visual_BPD, label_tensors(step), step.words)
    assert torch.equal(loss, sea_loss(step.visual_BPD, label_tensors(step), step.words, generator=stream(5)))
    assert not torch.equal(loss, sea_loss(step.visual_BPD, label_tensors(step), step.words))


def test_only_drawn_words_are_embedded_and_unspelled_ones_never_drawn():
    step, *_ = make_step()
    step.words.pieces_WT[::2] = -1  # the tokenizer makes nothing of every other word
    asked, embed = [], step.words.embed
    step.words.embed = lambda ids: asked.append(len(ids)) or embed(ids)
    labels = label_tensors(step)
    loss = sea_loss(step.visual_BPD, labels, step.words, generator=stream(1))
    _, word_N = draw(lambda n: (labels.at(n)[0], step.words.scored(*labels.at(n))), 2, step.grid, 2, stream(1))
    assert asked == [len(word_N)]
    assert all(word % 2 for word in word_N.tolist())
    assert torch.equal(loss, sea_loss(step.visual_BPD, labels, step.words, generator=stream(1)))


def test_labels_of_another_grid_are_those_under_each_token():
    step, *_ = make_step(grid=(5, 3))
    labels = label_tensors(step)
    tokens = torch.randn(2, 8, 16, generator=stream(9))
    loss = sea_loss(tokens, labels, step.words, grid=(4, 2), generator=stream(1))
    assert torch.equal(loss, sea_loss(tokens, labels.on((4, 2)), step.words, generator=stream(1)))


@pytest.mark.parametrize("images", [0, 2])
def test_no_label_is_a_zero_with_a_gradient(images):
    labels = PatchLabels(["a"], torch.zeros(images, 15, 1).long(), torch.zeros(images, 15, 1), (5, 3))
    tokens, text = torch.randn(images, 15, 8, requires_grad=True), torch.randn(1, 8, requires_grad=True)
    loss = sea_loss(tokens, labels, text)
    loss.backward()
    assert loss.item() == 0
    assert tokens.grad is not None
    assert text.grad is not None


LABELS = PatchLabels(["a", "b"], torch.zeros(2, 15, 1).long(), torch.ones(2, 15, 1), (5, 3))
OTHER = Words(["a", "c"], torch.zeros(2, 1).long(), lambda ids: torch.ones(*ids.shape, 8))


@pytest.mark.parametrize(
    ("change", "at", "message"),
    [
        ({"tokens_BQD": torch.ones(15, 8)}, "args.tokens_BQD", r"images x tokens x width, not \(15, 8\)"),
        ({"tokens_BQD": torch.ones(2, 16, 8)}, "args.grid", "16 visual tokens an image, and a grid of 5 x 3"),
        ({"grid": (4, 4)}, "args.grid", "15 visual tokens an image, and a grid of 4 x 4"),
        ({"tokens_BQD": torch.ones(3, 15, 8)}, "args.labels", "visual tokens of 3 images, and labels of 2"),
        ({"text": torch.ones(3, 8)}, "args.text", "text is of 3 words that are not the 2 of the labels"),
        ({"text": OTHER}, "args.text", "text is of 2 words that are not the 2 of the labels"),
        ({"text": torch.ones(2, 9)}, "args.text", "words have 9 numbers each, visual tokens 8"),
        ({"window": 0}, "args.window", "window must be at least 1, got 0"),
        ({"temperature": 0.0}, "args.temperature", "temperature must be above 0, got 0"),
        ({"temperature": torch.tensor(-1.0)}, "args.temperature", "temperature must be above 0, got -1"),
        ({"temperature": torch.ones(2)}, "args.temperature", "temperature is one number, not 2"),
    ],
)
def test_what_does_not_fit_is_refused(change, at, message):
    fitting = {"tokens_BQD": torch.ones(2, 15, 8), "labels": LABELS, "text": torch.ones(2, 8)}
    with pytest.raises(CheckError, match=message) as caught:
        sea_loss(**{**fitting, **change})
    assert caught.value.at == at


def test_temperature():
    assert SEA().log_scale.exp().item() == pytest.approx(1 / 0.07)
    assert SEA(temperature=0).log_scale.item() == 0  # the paper's printed 0: a log-temperature of 0
    assert SEA().log_scale.shape == (1,)
    step, *_ = make_step()
    sea = SEA(temperature=1e-9)
    assert torch.isfinite(sea(step))
    assert 1 / step.notes["temperature"].item() == pytest.approx(MAX_SCALE)


def test_no_pair_gives_a_zero_that_has_a_gradient():
    scores, words = random_labels(1, (4, 4), shift=100)
    visual = torch.randn(1, 16, 8, requires_grad=True)
    spelled = Words(["a"], torch.zeros(1, 1).long(), lambda ids: torch.randn(*ids.shape, 8))
    step = Step(visual_BPD=visual, grid=(4, 4), labels=labelled(scores, words), words=spelled, random=stream())
    loss = SEA()(step)
    loss.backward()
    assert loss.item() == 0
    assert visual.grad is not None


@pytest.mark.parametrize("images", [0, 2])
def test_without_a_pair_the_words_are_embedded_all_the_same(images):
    """Under ZeRO-3 the other ranks wait in the table of embeddings, forth and back."""
    scores, words = random_labels(images, (4, 4), shift=100)
    visual, table = torch.randn(images, 16, 8, requires_grad=True), torch.nn.Embedding(3, 8)
    spelled = Words(["a"], torch.zeros(1, 1).long(), table)
    step = Step(visual_BPD=visual, grid=(4, 4), labels=labelled(scores, words), words=spelled, random=stream())
    SEA()(step).backward()
    assert table.weight.grad is not None


@pytest.mark.parametrize("args", [{"window": 0}, {"temperature": -1.0}])
def test_bad_settings(args):
    with pytest.raises(CheckError, match=r"sea: (window|temperature) must be at least"):
        SEA(**args)


def _rank(rank: int, folder: str) -> None:
    """One of two ranks: its half of the pairs, its gradient and loss written down."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    halves = torch.load(f"{folder}/halves.pt", weights_only=True)
    visual = halves["visual"][rank].clone().requires_grad_()
    text = halves["text"][rank].clone().requires_grad_()
    scale = torch.tensor([3.0], requires_grad=True)
    loss = info_nce(similarities(joined(visual), joined(text), scale))
    loss.backward()
    # data-parallel training averages gradients over ranks
    results = {"loss": loss.detach(), "visual": visual.grad / 2, "text": text.grad / 2, "scale": scale.grad}
    torch.save(results, f"{folder}/{rank}.pt")
    objective = SEA(gather=True)
    objective.prepare(Context(distributed=True))
    step, *_ = make_step(seed=rank)
    both = objective(step)
    torch.save(torch.stack([both.detach(), step.notes["pairs"]]), f"{folder}/sea-{rank}.pt")
    dist.destroy_process_group()


def test_gather_over_two_ranks_equals_one_process_on_the_joined_batch(tmp_path: Path):
    g = stream(6)
    visual = [torch.randn(n, 8, generator=g) for n in (5, 3)]
    text = [torch.randn(n, 8, generator=g) for n in (5, 3)]
    torch.save({"visual": visual, "text": text}, tmp_path / "halves.pt")
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    all_visual, all_text = (torch.cat(x).requires_grad_() for x in (visual, text))
    scale = torch.tensor([3.0], requires_grad=True)
    loss = info_nce(similarities(all_visual, all_text, scale))
    loss.backward()
    results = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1)]
    for one in results:
        assert torch.allclose(one["loss"], loss, rtol=1e-6)
        assert torch.allclose(one["scale"], scale.grad, rtol=1e-5)
    assert torch.allclose(torch.cat([one["visual"] for one in results]), all_visual.grad, rtol=1e-5, atol=1e-7)
    assert torch.allclose(torch.cat([one["text"] for one in results]), all_text.grad, rtol=1e-5, atol=1e-7)
    sea = [torch.load(tmp_path / f"sea-{r}.pt", weights_only=True) for r in (0, 1)]
    assert torch.equal(*sea)  # both ranks contrast the same pairs, each word once over both
    alone = []
    for seed in (0, 1):
        step, *_ = make_step(seed=seed)
        SEA()(step)
        alone.append(step.notes["pairs"])
    assert max(alone) < sea[0][1] <= sum(alone)
