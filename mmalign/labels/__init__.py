"""What a label source is: it says which words a patch shows, and how well each fits.

Letters: B images, P patches, N patches of any images, K words kept for a patch, W words in the list, J width of the
joint space.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from mmalign.errors import CheckError
from mmalign.vision import Frame

Sample = Callable[[int], Sequence[tuple[Tensor, str]]]  # images -> (dense_PJ, caption) of that many, spread evenly


@dataclass
class PatchLabels:
    """The words of each patch of some images.

    words: W of them. words_BPK: numbers into `words`, best first. scores_BPK: fp32; 0 or less says `no word`.
    grid: (rows, columns) of the P patches, which follow each other row by row. frames: of each image, where they lie in
    the picture; None: the patches cover all of each picture.
    Raises CheckError where these do not fit each other.
    """

    words: list[str]
    words_BPK: Tensor
    scores_BPK: Tensor
    grid: tuple[int, int]
    frames: Sequence[Frame] | None = None

    def __post_init__(self) -> None:
        shape, (rows, columns) = tuple(self.words_BPK.shape), self.grid
        if len(shape) != 3 or shape[1] != rows * columns or not shape[2]:
            what = f"words_BPK has the shape {shape}, which is not images x {rows * columns} patches x top_k"
            raise CheckError(what, at="args.words_BPK", fix=f"grid=(rows, columns) of its patches, not {self.grid}")
        if tuple(self.scores_BPK.shape) != shape:
            what = f"words_BPK has the shape {shape}, and scores_BPK {tuple(self.scores_BPK.shape)}"
            raise CheckError(what, at="args.scores_BPK", fix="a score for each word")
        odd_M = self.words_BPK[(self.words_BPK < 0) | (self.words_BPK >= len(self.words))]
        if len(odd_M):
            what = f"words_BPK holds {int(odd_M[0])}, and there are {len(self.words)} words"
            raise CheckError(what, at="args.words_BPK", fix="numbers into `words`, from 0, where the score is 0, too")
        if self.frames is not None and [frame.grid for frame in self.frames] != [self.grid] * shape[0]:
            what = f"labels of {shape[0]} images on {self.grid}, and frames on {[frame.grid for frame in self.frames]}"
            raise CheckError(what, at="args.frames", fix="one for each image, on the grid of its labels")

    def __len__(self) -> int:
        """B."""
        return len(self.words_BPK)

    def at(self, patch_N: Tensor) -> tuple[Tensor, Tensor]:
        """words_NK and scores_NK of patches counted through all images (b * P + p)."""
        return self.words_BPK.flatten(0, 1)[patch_N].long(), self.scores_BPK.flatten(0, 1)[patch_N]

    def on(self, grid: tuple[int, int]) -> "PatchLabels":
        """The labels of another grid over the same part of each picture: see `onto`."""
        return self if grid == self.grid else self._moved([replace(frame, grid=grid) for frame in self._frames()], grid)

    def onto(self, frames: Sequence[Frame]) -> "PatchLabels":
        """The labels of other patches of the same pictures: for each, those of the patch under its centre.

        frames: of each image, where those patches lie; all on one grid. Padding has no word, nor what was cropped away
        when labels were made. Raises CheckError where frames are of other pictures.
        """
        own = self._frames()
        if [frame.size for frame in own] != [frame.size for frame in frames] and self.frames is not None:
            sizes = [frame.size for frame in frames]
            what = f"labels of pictures of {[frame.size for frame in own]}, and frames of {sizes}"
            raise CheckError(what, at="args.frames", fix="of the same pictures, in the same order")
        return self._moved(frames, frames[0].grid) if frames else self

    def _moved(self, frames: Sequence[Frame], grid: tuple[int, int]) -> "PatchLabels":
        index = [source.onto(target) for source, target in zip(self._frames(), frames, strict=True)]
        index_BP = torch.tensor(index, dtype=torch.long, device=self.words_BPK.device).view(
            len(self), grid[0] * grid[1]
        )
        at_BPK = index_BP.clamp(min=0)[..., None].expand(-1, -1, self.words_BPK.shape[-1])
        words_BPK, scores_BPK = self.words_BPK.gather(1, at_BPK), self.scores_BPK.gather(1, at_BPK)
        scores_BPK = scores_BPK * (index_BP >= 0)[..., None]
        return replace(self, words_BPK=words_BPK, scores_BPK=scores_BPK, grid=grid, frames=list(frames))

    def _frames(self) -> Sequence[Frame]:
        return self.frames if self.frames is not None else [Frame("squash", (1, 1), self.grid)] * len(self)

    def to(self, device: torch.device | str) -> "PatchLabels":
        if self.words_BPK.device == self.scores_BPK.device == torch.device(device):
            return self
        return replace(self, words_BPK=self.words_BPK.to(device), scores_BPK=self.scores_BPK.to(device))

    @property
    def best(self) -> list[list[str]]:
        """The best word of each patch, an image after the other; '' where it has none."""
        score_BP, rank_BP = self.scores_BPK.max(-1)
        number_BP = self.words_BPK.gather(-1, rank_BP[..., None])[..., 0]
        return [
            [self.words[number] if score > 0 else "" for number, score in zip(numbers, scores, strict=True)]
            for numbers, scores in zip(number_BP.tolist(), score_BP.tolist(), strict=True)
        ]


def under(words_PK: Tensor, scores_PK: Tensor, patch_P: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The labels of the patches of these numbers, see `Frame.onto`; -1 is no patch, and its scores are 0."""
    index_P = torch.tensor(patch_P, device=words_PK.device)
    return words_PK[index_P.clamp(min=0)], scores_PK[index_P.clamp(min=0)] * (index_P >= 0)[:, None]


class LabelSource:
    """Words for patches, best first; a score of 0 or less means `no word`.

    Not a module of the trained model: it is never trained, cast or partitioned.
    """

    needs: ClassVar[str] = "dense"  # dense: the encoder's joint-space features; truth: words the data itself gives
    words: list[str]  # W of them; labels are numbers into this list

    def prepare(self, captions: Callable[[], Iterable[str]], sample: Sample) -> dict[str, object]:
        """Look at what of the data it needs before the first label; returns what was decided, for log and header."""
        return {}

    def label(self, dense_NJ: Tensor) -> tuple[Tensor, Tensor]:
        """words_NK, numbers into `words`, and scores_NK, fp32."""
        raise NotImplementedError

    def given(self, truth: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """words_PK and scores_PK from the words the data gives for each patch (sources that need `truth`)."""
        raise NotImplementedError

    def to(self, device: torch.device) -> "LabelSource":
        return self

    def identity(self) -> str:
        """What tells this source's labels from another's: words, encoder and settings."""
        raise NotImplementedError
