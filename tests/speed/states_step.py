"""A training step with lm and one more objective against one with lm alone: time and peak memory, of those objectives
that look at hidden states, at all labelled patches or at another encoder's features. Labels come from a store, and the
features are there already: what the encoder itself takes is a forward pass of it, without gradient, beside these.

The model of `basic_step`, the adapter learning; 41,242 words of which each patch has 10. What one costs is reported and
has no target, but for memory: none may hold patches x vocabulary.
"""

from collections.abc import Callable
from functools import partial

import torch

from mmalign.objectives import Objective, Words
from mmalign.objectives.assignment import Assignment
from mmalign.objectives.caption_contrast import CaptionContrast
from mmalign.objectives.lm import NextToken
from mmalign.objectives.logit_lens import LogitLens
from mmalign.objectives.next_embedding import NextEmbedding
from mmalign.objectives.patch_words import PatchWords
from mmalign.objectives.reconstruction import Reconstruction
from mmalign.objectives.representation import Representation
from mmalign.objectives.visual_words import VisualWords
from mmalign.objectives.vocabulary_regression import VocabularyRegression
from mmalign.vision import Vision
from mmalign.vlm.supervised import PassLabels

from . import Pairs, in_turn
from ._work import clock, peak
from .basic_step import GRID, WIDE, probe
from .topn import KEEP, WORDS

TARGET = float("inf")
MEMORY = 1.25  # of lm's step
TIMES = 3
NARROW = 1 if torch.cuda.is_available() else 8  # as the language model is beside Vicuna's


class Other(Vision):
    """An encoder whose features are there already."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.grid = WIDE, GRID
        self.register_buffer("patches_1PC", torch.randn(1, GRID[0] * GRID[1], WIDE))

    def forward(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        patches_1PC: torch.Tensor = self.patches_1PC
        return patches_1PC.expand(len(pixels_B3SS), -1, -1)


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "next-embedding": NextEmbedding,
    "logit-lens": LogitLens,
    "logit-lens, layer 1": partial(LogitLens, 1),
    "visual-words": VisualWords,
    "visual-words, embeddings": partial(VisualWords, "embeddings"),
    "vocabulary-regression": VocabularyRegression,
    "patch-words": PatchWords,
    "caption-contrast": CaptionContrast,
    "assignment": Assignment,
    "representation": lambda: Representation(Other(), width=2048 // NARROW),
    "reconstruction": lambda: Reconstruction(Other(), width=1024 // NARROW),
    "reconstruction, regression": lambda: Reconstruction(Other(), "regression", width=1024 // NARROW),
}


def measure() -> dict[str, Pairs]:
    torch.set_num_threads(1)
    alone, found = _step({"lm": NextToken()}), dict[str, Pairs]()
    least = peak(alone)
    for name, make in OBJECTIVES.items():
        both = _step({"lm": NextToken(), name: make()})
        found[f"step lm + {name} / lm"] = in_turn(both, alone, TIMES, clock)
        found[f"{name}, memory"] = Pairs([peak(both)], [least], MEMORY, "MiB")
    return found


def _step(objectives: dict[str, Objective]) -> Callable[[], None]:
    """Forward and backward, the gradients thrown away."""
    model, batch = probe({name.split(",")[0]: objective for name, objective in objectives.items()})
    device, shape = batch.ids_RS.device, (batch.images, GRID[0] * GRID[1], KEEP)
    pieces_WT = torch.randint(3, 300, (WORDS, 3), device=device)
    model._labels = (PassLabels(Words([""] * WORDS, pieces_WT, model.vlm.llm.embed)),)
    batch.words_BPK, batch.scores_BPK = torch.randint(WORDS, shape, device=device), torch.rand(shape, device=device)

    batch.target_pixels = [batch.pixels_B3SS for _ in model.encoders]

    def step() -> None:
        terms, _ = model(batch)
        sum(terms.values()).backward()
        model.zero_grad()

    return step
