"""{{ name }}: a label source for mmalign.

Letters: N patches of any images, K words kept for a patch, W words in the list, J width of the joint space.
"""

import hashlib
from collections.abc import Callable, Iterable

import torch
from mmalign.io.wordlist import read_words
from mmalign.labels import LabelSource, Sample
from mmalign.vision import Vision
from torch import Tensor
from torch.nn import functional as F

WORDS = "pkg:mmalign.toyworld/words/clean.txt"


class {{ cls }}(LabelSource):
    """One line that says how it finds words; `mmalign list labels` shows it.

    encoder: a vision card with a text tower. keep: words a patch. words: a file, one word a line.
    """

    needs = "dense"  # truth: words the data itself gives, by `given` in place of `label`

    def __init__(self, encoder: Vision, keep: int, words: str = WORDS) -> None:
        self.encoder, self.words = encoder, read_words(words)
        self.keep = min(keep, len(self.words))

    def prepare(self, captions: Callable[[], Iterable[str]], sample: Sample) -> dict[str, object]:
        self.text_WJ = self.encoder.words(self.words)
        return {"words": len(self.words)}

    @torch.no_grad()
    def label(self, dense_NJ: Tensor) -> tuple[Tensor, Tensor]:
        cosine_NW = F.normalize(dense_NJ.float(), dim=-1) @ self.text_WJ.T
        scores_NW = cosine_NW - cosine_NW.mean(1, keepdim=True)  # nearer to it than to most words
        best = scores_NW.topk(self.keep, dim=1)
        return best.indices, best.values

    def to(self, device: torch.device) -> "{{ cls }}":
        self.text_WJ = self.text_WJ.to(device)
        return self

    def identity(self) -> str:
        words = hashlib.sha256("\n".join(self.words).encode()).hexdigest()[:12]
        return f"{{ name }}, {self.encoder.identity()}, words {words}"
