"""SEA: supervised embedding alignment (arXiv 2408.11813, section 4.2)."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.errors import CheckError
from mmalign.labels import PatchLabels
from mmalign.objectives import Context, Labels, Objective, Step, Words
from mmalign.objectives.contrast import MAX_SCALE, bounded, info_nce, similarities
from mmalign.vision import Frame


class Text(Protocol):
    """text_WD by word number: a tensor, or `Words`, which embeds only the words that are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, word_N: Tensor, /) -> Tensor: ...


def sea_loss(
    tokens_BQD: Tensor,
    labels: PatchLabels,
    text: Text,
    *,
    grid: tuple[int, int] | None = None,
    frames: Sequence[Frame] | None = None,
    window: int = 2,
    temperature: float | Tensor = 0.07,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Contrast visual tokens with words that their patches show: SEA (arXiv 2408.11813, eq. 7 to 9).

    One labelled patch of every window, one word of it in proportion to the scores, each word once in the batch.
    tokens_BQD: visual tokens as the adapter gives them; token i is patch i, row by row.
    labels: words and scores of the same images; where their patches are others, those under each token's centre.
    text: text_ND when indexed by numbers of `labels.words`: a tensor text_WD with a row for each word, the mean of its
    sub-tokens' input embeddings (eq. 7), or `Words`, which also leaves out words the tokenizer makes nothing of.
    grid: (rows, columns) of the tokens; None: that of the labels. frames: where the tokens lie in each picture
    (`VLM.frames`), for labels of an encoder that makes its squares in another way; None: in the same square.
    window: side in patches of the squares of which each gives one patch (the paper: 2).
    temperature: above 0; a tensor of one element may be learned, best as the exp of its logarithm. Below 0.01 it counts
    as 0.01, as in CLIP.
    generator: of the draws, which are made on its device; None: torch's default one.

    Mean over the pairs, scalar, fp32; 0 where no patch has a label. Gradients reach tokens, text and temperature.
    Raises CheckError where these do not fit each other.
    """
    grid = frames[0].grid if frames else labels.grid if grid is None else grid
    _check(tokens_BQD, labels, text, grid)
    _check_window(window)
    random = generator or _default_generator(tokens_BQD.device)
    labels_at = _spelled((labels.onto(frames) if frames else labels.on(grid)).to(random.device), text)
    patch_N, word_N = draw(labels_at, len(tokens_BQD), grid, window, random)
    visual_ND, text_ND = pairs(tokens_BQD, text, patch_N, word_N)
    return info_nce(similarities(visual_ND, text_ND, _scale(temperature, tokens_BQD.device)))  # eq. 8 and 9


def pairs(tokens_BQD: Tensor, text: Text, patch_N: Tensor, word_N: Tensor) -> tuple[Tensor, Tensor]:
    """visual_ND and text_ND, the tokens and words that were drawn as unit vectors, fp32."""
    visual_ND = tokens_BQD.flatten(0, 1)[patch_N.to(tokens_BQD.device)]
    place = text.device if isinstance(text, Tensor) else tokens_BQD.device
    text_ND = text[word_N.to(place)].to(tokens_BQD.device)  # eq. 7
    if text_ND.shape[1] != visual_ND.shape[1]:
        what = f"words have {text_ND.shape[1]} numbers each, visual tokens {visual_ND.shape[1]}"
        raise CheckError(what, at="args.text", fix="input embeddings of the language model that the adapter feeds")
    return F.normalize(visual_ND.float(), dim=-1), F.normalize(text_ND.float(), dim=-1)


def _check(tokens_BQD: Tensor, labels: PatchLabels, text: Text, grid: tuple[int, int]) -> None:
    shape, (rows, columns) = tuple(tokens_BQD.shape), grid
    if len(shape) != 3:
        raise CheckError(f"tokens_BQD is images x tokens x width, not {shape}", at="args.tokens_BQD")
    if shape[1] != rows * columns:
        what = f"{shape[1]} visual tokens an image, and a grid of {rows} x {columns}"
        raise CheckError(what, at="args.grid", fix="grid=(rows, columns) of an adapter that keeps the grid")
    if shape[0] != len(labels):
        raise CheckError(f"visual tokens of {shape[0]} images, and labels of {len(labels)}", at="args.labels")
    if len(text) != len(labels.words) or (isinstance(text, Words) and text.words != labels.words):
        what = f"text is of {len(text)} words that are not the {len(labels.words)} of the labels"
        raise CheckError(what, at="args.text", fix="a row for each word of labels.words, in their order")


def _check_window(window: int) -> None:
    if window < 1:
        raise CheckError(f"sea: window must be at least 1, got {window}", at="args.window")


def _scale(temperature: float | Tensor, device: torch.device) -> Tensor:
    """1/temperature, bounded."""
    value_N = torch.as_tensor(temperature).detach().flatten()
    if len(value_N) != 1:
        raise CheckError(f"temperature is one number, not {len(value_N)}", at="args.temperature")
    if not value_N[0] > 0:
        fix = "temperature=1.0 for the paper's 0, which is read as its logarithm"
        raise CheckError(f"temperature must be above 0, got {value_N[0]:g}", at="args.temperature", fix=fix)
    return torch.as_tensor(1 / temperature, dtype=torch.float32, device=device).clamp(max=MAX_SCALE)


def _spelled(labels: PatchLabels, text: Text) -> Labels:
    """The labels of patches, without words the tokenizer makes nothing of, where that is known."""
    if not isinstance(text, Words):
        return labels.at

    def spelled_at(patch_N: Tensor) -> tuple[Tensor, Tensor]:
        words_NK, scores_NK = labels.at(patch_N)
        return words_NK, text.scored(words_NK, scores_NK)

    return spelled_at


def _default_generator(device: torch.device) -> torch.Generator:
    """The one torch draws from where none is named; that of the CPU for devices other than CUDA's."""
    return torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator


class SEA(Objective):
    """Contrast each visual token with one of the words its patch shows (eq. 7 to 9).

    window: side of the squares of which each gives one patch (the paper: 2).
    temperature: where the learnable temperature starts. The paper prints 0, which cannot be a temperature; 0 is read
    as a log-temperature of 0, that is 1. Our default is CLIP's 0.07: from 1, short runs hardly move.
    gather: contrast over all ranks' pairs instead of those of one device, gradients included; the number of devices
    then changes the result. The paper does not say which.
    """

    needs = frozenset({"labels"})
    per_patch = True
    collective = True  # ZeRO-3 gathers the words' embeddings from all ranks

    def __init__(self, window: int = 2, temperature: float = 0.07, gather: bool = False) -> None:
        super().__init__()
        _check_window(window)
        if temperature < 0:
            raise CheckError(f"sea: temperature must be at least 0, got {temperature:g}", at="args.temperature")
        self.window, self.gather = window, gather
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature) if temperature else 0.0]))

    def prepare(self, context: Context) -> None:
        self.gather = self.gather and context.distributed

    def forward(self, step: Step) -> Tensor:
        """Mean over the pairs drawn from this pass (eq. 9); 0 when no patch has a label. Scalar, fp32."""
        patch_N, word_N = draw(step.labels, len(step.visual_BPD), step.grid, self.window, step.random)
        visual_ND, text_ND = pairs(step.visual_BPD, step.words, patch_N, word_N)
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
    drawn: list[tuple[Tensor, Tensor, Tensor]] = []
    open_BW: Tensor | None = None  # windows that have no patch yet
    for _ in range(window * window):
        best_BW, at_BW = (t.flatten(1) for t in F.max_pool2d_with_indices(lot_BHW, (window, window), ceil_mode=True))
        asked_BW = best_BW >= 0 if open_BW is None else (best_BW >= 0) & open_BW
        image_N, window_N = torch.where(asked_BW)
        patch_N = image_N * (grid[0] * grid[1]) + at_BW[image_N, window_N]
        words_NK, scores_NK = labels(patch_N)
        has_N = scores_NK.amax(1) > 0
        drawn.append((patch_N[has_N], words_NK[has_N], scores_NK[has_N]))
        open_BW = asked_BW.index_put((image_N, window_N), ~has_N)
        if not bool(open_BW.any()):
            break
        lot_BHW.view(-1)[patch_N] = -1
    patch_N, words_NK, scores_NK = (torch.cat(parts) for parts in zip(*drawn, strict=True))
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
    rows_of_all: Tensor = _Joined.apply(own, rows)
    return rows_of_all


def shared(random: torch.Generator) -> torch.Generator:
    """A stream that is the same on every rank: the first rank's choice."""
    seed = torch.randint(1 << 62, (1,), generator=random, device=random.device)
    dist.broadcast(seed, 0)
    return torch.Generator(random.device).manual_seed(int(seed))
