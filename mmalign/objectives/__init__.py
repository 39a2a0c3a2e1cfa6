"""What an objective is: one term of the training loss.

Letters, here and in every file of this family: B images, H x W = P patches, Q visual tokens of an image (P where the
adapter keeps the grid), K words kept for a patch, W words in the list, N pairs or tokens, D width of the language
model, V its vocabulary, L its layers.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, Literal, NoReturn

import torch
from torch import Tensor, nn

from mmalign.llms import Look

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
    head: Callable[[Tensor], Tensor]  # answers: hidden states -> logits over the vocabulary
    nll: Callable[[Tensor, Tensor, Tensor], Tensor]  # answers: states, ids, weights -> sum of weight * -log p(id)

    labels: Labels  # labels: the words of any patches asked for
    words: Words  # labels: what the numbers mean

    refined: dict[Look, Tensor]  # layers: refined_BPD, the visual tokens after the layers of a look, fp32
    shares: dict[Look, Tensor]  # layers: share_BP, how much each token of an image counts; sums to 1
    vocabulary: Callable[[], AbstractContextManager[Tensor]]  # layers: embed_VD, whole only inside a `with`

    def __init__(self, **values: object) -> None:
        self.notes: dict[str, Tensor] = {}
        vars(self).update(values)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"this step has no {name}; does the objective list it in `needs`?")

    def note(self, name: str, value: Tensor | float) -> None:
        """Log a number beside the loss: averaged over the passes of a step and over ranks."""
        self.notes[name] = torch.as_tensor(value, dtype=torch.float32).detach()


@dataclass
class Context:
    """What an objective may know about the model before training: set once, before the first step."""

    layers: int = 0  # L
    distributed: bool = False  # whether there are several ranks
    # (k, a file of texts) -> the lens of layers 1 .. k, see `Look`: from hidden states back to input embeddings, fitted
    # on these texts, without a file on the stage's own; None: there is none
    lens: Callable[[int, str | None], Callable[[int, Tensor], Tensor]] | None = None


class Objective(nn.Module):
    """One term of the loss, before its weight in the recipe: a scalar, the mean over its `unit` in this pass.

    Parameters it owns are trained, saved and resumed with the rest; give them at least one dimension (DeepSpeed
    partitions no 0-dimensional tensor).
    """

    needs: ClassVar[frozenset[str]] = frozenset()  # of answers, labels, layers
    # True: ranks wait for each other in it (under ZeRO-3 in any module of the model), so a pass without images calls it
    collective: ClassVar[bool] = False
    per_patch: ClassVar[bool] = False  # True: token i must be patch i, so the adapter has to keep the grid
    look: Look | None = None  # layers: what is to be seen of them; set in `prepare`
    unit: ClassVar[Literal["tokens", "images"]] = "images"  # what the mean is over, so that passes average exactly

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
        zero: Tensor = sum((p.float().sum() * 0 for p in self.parameters()), visual_BPD.float().sum())
        return zero

    return guarded
