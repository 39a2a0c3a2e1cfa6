"""What a label source is: it says which words a patch shows, and how well each fits.

Letters: B images, P patches, N patches of any images, K words kept for a patch, W words in the list, J width of the
joint space.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

Sample = Callable[[int], Sequence[tuple[Tensor, str]]]  # images -> (dense_PJ, caption) of that many, spread evenly


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
