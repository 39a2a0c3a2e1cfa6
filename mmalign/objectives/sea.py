"""SEA: supervised embedding alignment (arXiv 2408.11813, section 4.2)."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.errors import CheckError
from mmalign.objectives import Context, Labels, Objective, Step
from mmalign.objectives.contrast import bounded, info_nce, similarities


class SEA(Objective):
    """Contrast each visual token with one of the words its patch shows (eq. 7 to 9).

    window: side of the squares of which each gives one patch (the paper: 2).
    temperature: where the learnable temperature starts. The paper prints 0, which cannot be a temperature; 0 is read
    as a log-temperature of 0, that is 1. Our default is CLIP's 0.07: from 1, short runs hardly move.
    gather: contrast over all ranks' pairs instead of those of one device, gradients included; the number of devices
    then changes the result.
    """

    needs = frozenset({"labels"})
    per_patch = True
    collective = True  # ZeRO-3 gathers the words' embeddings from all ranks

    def __init__(self, window: int = 2, temperature: float = 0.07, gather: bool = False) -> None:
        super().__init__()
        if window < 1:
            raise CheckError(f"sea: window must be at least 1, got {window}", at="args.window")
        if temperature < 0:
            raise CheckError(f"sea: temperature must be at least 0, got {temperature:g}", at="args.temperature")
        self.window, self.gather = window, gather
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature) if temperature else 0.0]))

    def prepare(self, context: Context) -> None:
        self.gather = self.gather and context.distributed

    def forward(self, step: Step) -> Tensor:
        """Mean over the pairs drawn from this pass (eq. 9); 0 when no patch has a label. Scalar, fp32."""
        patch_N, word_N = draw(step.labels, len(step.visual_BPD), step.grid, self.window, step.random)
        visual_ND = F.normalize(step.visual_BPD.flatten(0, 1)[patch_N].float(), dim=-1)
        text_ND = F.normalize(step.words.embeddings(word_N), dim=-1)
        if self.gather:
            visual_ND, text_ND, word_N = joined(visual_ND), joined(text_ND), joined(word_N)
            kept = once_each(word_N, shared(step.random))
            visual_ND, text_ND, word_N = visual_ND[kept], text_ND[kept], word_N[kept]
        scale = bounded(self.log_scale)
        step.note("pairs", len(word_N))
        step.note("temperature", 1 / scale[0])
        return info_nce(similarities(visual_ND, text_ND, scale))


def draw(
    labels: Labels, images: int, grid: tuple[int, int], window: int, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(patch, word) pairs: one labelled patch a window, one word a patch, no word twice.

    Returns patch_N, counted through all images (b * P + p), and word_N, in random order.
    """
    patch_N, words_NK, scores_NK = draw_patches(labels, images, grid, window, random)
    word_N = draw_words(words_NK, scores_NK, random)
    kept = once_each(word_N, random)
    return patch_N[kept], word_N[kept]


def draw_patches(
    labels: Labels, images: int, grid: tuple[int, int], window: int, random: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """patch_N, words_NK, scores_NK: one patch of every window x window square, at random among those with a label.

    Every patch has a lot; a window's highest is taken, and where that patch has no label the next one, so that labels
    are asked for only as long as they are needed. Ragged edges count: 27 x 27 in windows of 2 gives 14 x 14.
    """
    if not images:
        patch_N = torch.zeros(0, dtype=torch.long, device=random.device)
        return patch_N, *labels(patch_N)
    lot_BHW = torch.rand(images, *grid, generator=random, device=random.device)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    open_BW: Tensor | None = None  # windows that have no patch yet
    for _ in range(window * window):
        best_BW, at_BW = (t.flatten(1) for t in F.max_pool2d_with_indices(lot_BHW, (window, window), ceil_mode=True))
        asked_BW = best_BW >= 0 if open_BW is None else (best_BW >= 0) & open_BW
        image_N, window_N = torch.where(asked_BW)
        patch_N = image_N * (grid[0] * grid[1]) + at_BW[image_N, window_N]
        words_NK, scores_NK = labels(patch_N)
        has_N = scores_NK.amax(1) > 0
        found.append((patch_N[has_N], words_NK[has_N], scores_NK[has_N]))
        open_BW = asked_BW.index_put((image_N, window_N), ~has_N)
        if not bool(open_BW.any()):
            break
        lot_BHW.view(-1)[patch_N] = -1
    patch_N, words_NK, scores_NK = (torch.cat(parts) for parts in zip(*found, strict=True))
    order_N = patch_N.argsort()  # the same whether labels came at once or bit by bit
    return patch_N[order_N], words_NK[order_N], scores_NK[order_N]


def draw_words(words_NK: Tensor, scores_NK: Tensor, random: torch.Generator) -> Tensor:
    """One word for each patch, in proportion to its score; words without a positive score are never drawn."""
    if not len(words_NK):
        return words_NK.new_zeros(0)
    pick_N1 = torch.multinomial(scores_NK.float().clamp(min=0), 1, generator=random)
    return words_NK.gather(1, pick_N1).squeeze(1)


def once_each(word_N: Tensor, random: torch.Generator) -> Tensor:
    """Where in word_N to look so that every word appears once, which of its places chosen at random."""
    mixed_N = torch.randperm(len(word_N), generator=random, device=word_N.device)
    ordered, order = word_N[mixed_N].sort(stable=True)
    first_N = torch.ones_like(ordered, dtype=torch.bool)
    first_N[1:] = ordered[1:] != ordered[:-1]
    return mixed_N[order[first_N]]


class _Joined(torch.autograd.Function):
    """Rows of all ranks, this rank's gradient summed over what every rank did with them."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: list[int]) -> Tensor:
        ctx.rows = rows
        padded = own.new_zeros(max(rows), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        start = sum(ctx.rows[: dist.get_rank()])
        return grad[start : start + ctx.rows[dist.get_rank()]], None


def joined(own: Tensor) -> Tensor:
    """The rows of every rank, in the order of the ranks; gradients flow back to each rank's own."""
    rows: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(rows, len(own))
    found: Tensor = _Joined.apply(own, rows)
    return found


def shared(random: torch.Generator) -> torch.Generator:
    """A stream that is the same on every rank: the first rank's choice."""
    seed = torch.randint(1 << 62, (1,), generator=random, device=random.device)
    dist.broadcast(seed, 0)
    return torch.Generator(random.device).manual_seed(int(seed))
