"""What an objective is: one term of the training loss.

Letters, here and in every file of this family: B images, H x W = P patches, Q visual tokens of an image (P where the
adapter keeps the grid), K words kept for a patch, W words in the list, N pairs or tokens, D width of the language
model, V its vocabulary, L its layers, M tokens of captions, C width of another encoder's features.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, Literal, NoReturn

import torch
from torch import Tensor, nn

from mmalign.errors import CheckError
from mmalign.io import bounds
from mmalign.llms import Look
from mmalign.vision import Vision

Layer = int | Literal["last"]  # 0: what goes into the language model; L and last: behind the final norm
# patch_N, counted through all images (b * P + p) -> words_NK by number, scores_NK: 0 or less where there is no word.
# Asked for patch by patch, since labels made in the pass need not be made for patches that nobody draws.
Labels = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass
class Words:
    """The words of a label source as the language model spells them."""

    words: list[str]
    pieces_WT: Tensor  # token ids of each word's pieces, padded with -1
    embed: Callable[[Tensor], Tensor]  # token ids -> input embeddings; the model's own module (ZeRO gathers it)

    @property
    def silent(self) -> list[str]:
        """Words of which the tokenizer makes nothing."""
        spelled = (self.pieces_WT >= 0).any(1).tolist() if self.pieces_WT.numel() else [False] * len(self.words)
        return [word for word, any_piece in zip(self.words, spelled, strict=True) if not any_piece]

    def __len__(self) -> int:
        """W."""
        return len(self.words)

    def __getitem__(self, word_N: Tensor) -> Tensor:
        """text_ND of these words alone: a long list is never embedded whole."""
        return self.embeddings(word_N)

    def scored(self, words_NK: Tensor, scores_NK: Tensor) -> Tensor:
        """The scores, 0 for words the tokenizer makes nothing of: those are never drawn."""
        spelled_W = (self.pieces_WT >= 0).any(1).to(words_NK.device)
        return scores_NK * spelled_W[words_NK]

    def embeddings(self, word_N: Tensor) -> Tensor:
        """text_ND: the mean of the embeddings of each word's pieces (SEA, section 4.2)."""
        pieces_NT = self.pieces_WT.to(word_N.device)[word_N]
        real_NT = (pieces_NT >= 0).unsqueeze(-1)
        pieces_NTD = self.embed(pieces_NT.clamp(min=0)).float()
        return (pieces_NTD * real_NT).sum(1) / real_NT.sum(1).clamp(min=1)


@dataclass
class Targets:
    """What a frozen encoder makes of the pictures of a pass, at the visual tokens, which have the model's own grid.

    features_BPC: of the patch under each token's centre, without gradient; 0 where there is none. known_BP: whether
    there is one: neither the token's patch nor the one under it is padding, or cropped away.
    """

    features_BPC: Tensor
    known_BP: Tensor


class Step:
    """One forward pass, as an objective sees it. Only images that exist are in it: text-only rows are left out."""

    visual_BPD: Tensor  # the visual tokens, as the adapter made them
    grid: tuple[int, int]  # H, W of those tokens; only where the adapter keeps the grid
    seen_BP: Tensor  # whether a token's patch shows picture, not padding; only where the adapter keeps the grid
    real_BP: Tensor | None = None  # whether there is a token, where images have different numbers; None: all are real
    random: torch.Generator  # this pass's own random numbers; the same for the same step and samples

    answer_ND: Tensor  # answers: final hidden states that predict a trained token
    answer_N: Tensor  # answers: the trained tokens' ids
    weight_N: Tensor  # answers: how much each counts
    head: Callable[[Tensor], Tensor]  # answers, states: hidden states -> logits over the vocabulary
    # answers, states: states, ids, weights -> sum of weight * -log p(id); of N rows, one id each or T of them
    nll: Callable[[Tensor, Tensor, Tensor], Tensor]
    # answers, states: states, rows, matrix, weights -> sum of weight * KL(softmax(rows matrix^T) || the head's)
    kl: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

    labels: Labels  # labels: the words of any patches asked for
    words: Words  # labels: what the numbers mean

    refined: dict[Look, Tensor]  # layers: refined_BPD, the visual tokens after the layers of a look, fp32
    shares: dict[Look, Tensor]  # layers: share_BP, how much each token of an image counts; sums to 1
    vocabulary: Callable[[], AbstractContextManager[Tensor]]  # layers, states: embed_VD, whole only inside a `with`

    states: dict[int, Tensor]  # states: {layer: hidden_BPD} of `state_layers`, at the visual tokens, with a gradient
    normed: Callable[[Tensor], Tensor]  # states: the final norm, which layers before the last lack before `head`

    captions: dict[int, Tensor]  # captions: {layer: hidden_MD}, at the trained tokens beside images, with a gradient
    caption_id_M: Tensor  # captions: the ids of these tokens
    caption_M: Tensor  # captions: the sample each of them is in, from 0
    sample_B: Tensor  # captions: the sample each image is in

    targets: dict[Vision, Targets]  # targets: of each of `encoders`

    def __init__(self, **values: object) -> None:
        self.notes: dict[str, Tensor] = {}
        vars(self).update(values)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"this step has no {name}; does the objective list it in `needs`?")

    @property
    def counted_BP(self) -> Tensor:
        """Whether a token is there and shows picture, as far as that is known."""
        all_BP = torch.ones(self.visual_BPD.shape[:2], dtype=torch.bool, device=self.visual_BPD.device)
        seen_BP = vars(self).get("seen_BP")
        counted_BP = all_BP if seen_BP is None else seen_BP
        return counted_BP if self.real_BP is None else counted_BP & self.real_BP

    def note(self, name: str, value: Tensor | float) -> None:
        """Log a number beside the loss: averaged over the passes of a step and over ranks."""
        self.notes[name] = torch.as_tensor(value, dtype=torch.float32).detach()


@dataclass
class Context:
    """What an objective may know about the model before training: set once, before the first step."""

    layers: int = 0  # L
    dim: int = 0  # D
    device: torch.device | None = None  # of parameters that are made in `prepare`; None: torch's own choice
    dtype: torch.dtype = torch.float32
    distributed: bool = False  # whether there are several ranks
    # (k, a file of texts) -> the lens of layers 1 .. k, see `Look`: from hidden states back to input embeddings, fitted
    # on these texts, without a file on the stage's own; None: there is none
    lens: Callable[[int, str | None], Callable[[int, Tensor], Tensor]] | None = None
    # embed_VD as it is before the first step, whole only inside a `with`; None: there is none
    vocabulary: Callable[[], AbstractContextManager[Tensor]] | None = None


class Objective(nn.Module):
    """One term of the loss, before its weight in the recipe: a scalar, the mean over its `unit` in this pass.

    Parameters it owns are trained, saved and resumed with the rest; give them at least one dimension (DeepSpeed
    partitions no 0-dimensional tensor).
    """

    needs: ClassVar[frozenset[str]] = frozenset()  # of answers, labels, layers, states, captions, targets
    # True: ranks wait for each other in it (under ZeRO-3 in any module of the model), so a pass without images calls it
    collective: ClassVar[bool] = False
    per_patch: ClassVar[bool] = False  # True: token i must be patch i, so the adapter has to keep the grid
    look: Look | None = None  # layers: what is to be seen of them; set in `prepare`
    state_layers: tuple[int, ...] = ()  # states, captions: of which layers, 0 to L; set in `prepare`
    unit: ClassVar[Literal["tokens", "images"]] = "images"  # what the mean is over, so that passes average exactly
    # targets: the encoder whose features it is handed, its argument `encoder`; in a tuple, so that it is no module of
    # the objective: never trained, saved or partitioned
    encoders: tuple[Vision, ...] = ()

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "forward" in vars(cls):
            cls.forward = _where_images(cls.forward)  # type: ignore[method-assign, assignment]

    def prepare(self, context: Context) -> None:
        """Called once, before the first step."""

    def forward(self, step: Step) -> Tensor:
        raise NotImplementedError


def _where_images(forward: Callable[[Any, Step], Tensor]) -> Callable[[Any, Step], Tensor]:
    """`forward`, but 0 for a pass without images, which only a collective objective has to see.

    The module is called nevertheless: under ZeRO-3 all ranks must call the same modules in the same order, or they wait
    for each other for ever.
    """

    @wraps(forward)
    def guarded(self: Any, step: Step) -> Tensor:
        visual_BPD = vars(step).get("visual_BPD")
        if visual_BPD is None or len(visual_BPD) or self.collective or self.unit != "images":
            return forward(self, step)
        states = [*vars(step).get("states", {}).values()]  # empty ones, but the way back through the layers
        ways = [*self.parameters(), *states]
        zero: Tensor = sum((one.float().sum() * 0 for one in ways), visual_BPD.float().sum())
        return zero

    return guarded


def per_image(counted_BP: Tensor) -> Tensor:
    """weight_BP with which a sum is the mean over images of the mean over what counts of each.

    An image of which nothing counts adds 0, so that the means of passes, by their images, average to that of a step.
    """
    return counted_BP / counted_BP.sum(1, keepdim=True).clamp(min=1) / max(1, len(counted_BP))


def numbered(layer: Layer, depth: int) -> int:
    """The number of a layer of a language model with `depth` of them; CheckError for one that there is not."""
    if problem := bounds.layer(layer, depth):
        raise CheckError(problem[0], at="args.layer", fix=problem[1])
    return layer if isinstance(layer, int) else depth
