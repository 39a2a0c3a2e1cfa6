"""What one device sees in one pass: conversations and pictures as tensors.

Letters: B images, S positions of R rows, P patches, K labels kept per patch, S also the side of a picture in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from mmalign.llms.chat import Chat
from mmalign.vision import Frame

IGNORED = -100  # the label of a position that is not trained, as transformers has it


@dataclass
class Batch:
    """mask_RS numbers the samples of a row: n at the positions of its nth, 0 at padding."""

    ids_RS: Tensor  # token ids; the mark's id where a visual token goes
    mask_RS: Tensor
    weight_RS: Tensor  # how much predicting the token at a position counts; 0: not trained
    pixels_B3SS: Tensor | None  # None: no image in this pass
    words_BPK: Tensor | None = None  # labels from a store, or from the data itself
    scores_BPK: Tensor | None = None
    label_pixels_B3SS: Tensor | None = None  # the same images, prepared for the label source's own encoder
    frames: list[Frame] | None = None  # where the visual tokens lie in each image's picture; None: all over it
    label_frames: list[Frame] | None = None  # and the patches of the label source's own encoder
    target_pixels: list[Tensor] = field(default_factory=list)  # pixels_B3SS for each encoder of targets; none: no image
    target_frames: list[list[Frame]] = field(default_factory=list)  # and where its patches lie; none: as the model's
    seed: int = 0  # of this pass's random numbers
    ids: list[str] = field(default_factory=list)  # the samples' ids
    cuts: dict[str, int] = field(default_factory=dict)  # {what was cut at max_length: how much}; empty: nothing

    @property
    def images(self) -> int:
        return 0 if self.pixels_B3SS is None else len(self.pixels_B3SS)

    @property
    def units(self) -> dict[str, float]:
        """How much of each unit this pass holds, known before it runs."""
        return {"tokens": float(self.weight_RS[:, 1:].sum()), "images": float(self.images)}

    def to(self, device: torch.device) -> "Batch":
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device, non_blocking=True) for k, v in values.items() if isinstance(v, Tensor)}
        moved["target_pixels"] = [own.to(device, non_blocking=True) for own in self.target_pixels]
        return replace(self, **moved)


@dataclass
class Sample:
    """One conversation as lists and tensors. weights: of each token id, how much predicting it counts."""

    id: str
    ids: list[int]
    weights: list[float]
    pixels: list[Tensor]  # pixels_3SS of every image
    words: list[Tensor] = field(default_factory=list)  # words_PK of every image, where labels are there
    scores: list[Tensor] = field(default_factory=list)
    label_pixels: list[Tensor] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)  # of every image, where it is asked for
    label_frames: list[Frame] = field(default_factory=list)
    target_pixels: list[list[Tensor]] = field(default_factory=list)  # of every image, for each encoder of targets
    target_frames: list[list[Frame]] = field(default_factory=list)
    lost: int = 0  # trained tokens behind max_length


def collate(rows: Sequence[Sequence[Sample]], chat: Chat, seed: int = 0) -> Batch:
    """The samples of each row one behind the other; right padding."""
    samples = [sample for row in rows for sample in row]
    longest = max(1, *(sum(len(sample.ids) for sample in row) for row in rows))
    ids_RS = torch.full((len(rows), longest), chat.pad, dtype=torch.long)
    mask_RS, weight_RS = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest)
    mask_RS[:, 0] = 1  # a row nobody could use still has one real position
    for row, together in enumerate(rows):
        start = 0
        for number, sample in enumerate(together, 1):
            own = slice(start, start + len(sample.ids))
            ids_RS[row, own], mask_RS[row, own] = torch.tensor(sample.ids), number
            weight_RS[row, own] = torch.tensor(sample.weights)
            weight_RS[row, start] = 0  # nothing predicts a sample's first token
            start = own.stop
    pixels, label_pixels = [p for s in samples for p in s.pixels], [p for s in samples for p in s.label_pixels]
    lost = [sample.lost for sample in samples]
    words, scores = [w for s in samples for w in s.words], [x for s in samples for x in s.scores]
    return Batch(
        ids_RS=ids_RS,
        mask_RS=mask_RS,
        weight_RS=weight_RS,
        pixels_B3SS=torch.stack(pixels) if pixels else None,
        words_BPK=torch.stack(words) if words else None,
        scores_BPK=torch.stack(scores) if scores else None,
        label_pixels_B3SS=torch.stack(label_pixels) if label_pixels else None,
        frames=[frame for s in samples for frame in s.frames] or None,
        label_frames=[frame for s in samples for frame in s.label_frames] or None,
        target_pixels=[torch.stack(own) for own in zip(*(p for s in samples for p in s.target_pixels), strict=True)],
        target_frames=[list(own) for own in zip(*(f for s in samples for f in s.target_frames), strict=True)],
        seed=seed,
        ids=[s.id for s in samples],
        cuts={"cut_samples": sum(map(bool, lost)), "cut_tokens": sum(lost)} if any(lost) else {},
    )
