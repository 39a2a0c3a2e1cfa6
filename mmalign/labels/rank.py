"""The best words of many, for many patches: exact, at the price of the matrix product that this device makes fastest.

Letters: N patches, W words, J width of the joint space, K words kept, C candidates.

All words get a rough score first, by a product in bf16 where that is fast, else in fp32 (see rough.py), and the best C
of them are scored again in fp32, the same way whichever product it was. A row is certified when no word outside its
candidates can reach its K-th best. Rows that are not are ranked with more candidates, at last with all words.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mmalign.labels.rough import BLOCK, Full, Half, Rough, Scores
from mmalign.labels.throughput import half_is_fast

# bytes of rough scores, in fp32, held at a time and between calls: new memory costs as much as the maxima
LIMIT = {"cpu": 96 << 20, "cuda": 512 << 20}
# patches whose candidates are scored at a time: on a CPU their words stay in the cache, a GPU wants few large calls
ROWS = {"cpu": 48, "cuda": 1024}


@dataclass
class Bank:
    """Words as unit vectors, ready to be ranked. text_WJ: fp32; mean_W: taken off each word's similarity. half: whether
    they are multiplied in bf16 first; None: where that is fast. Labels are the same."""

    text_WJ: Tensor
    mean_W: Tensor
    sign: int
    half: bool | None = None
    multiplied: Rough | None = field(default=None, repr=False)  # made when first used, on the device it is used on
    held: Tensor | None = field(default=None, repr=False)  # where the last call's rough scores lay

    @classmethod
    def of(cls, text_WJ: Tensor, mean_W: Tensor | None = None, sign: int = 1, half: bool | None = None) -> "Bank":
        mean_W = torch.zeros(len(text_WJ), device=text_WJ.device) if mean_W is None else mean_W
        return cls(text_WJ, mean_W, sign, half)

    def to(self, device: torch.device) -> "Bank":
        moved = {name: getattr(self, name).to(device) for name in ("text_WJ", "mean_W")}
        return replace(self, **moved, multiplied=None, held=None)

    @torch.no_grad()
    def best(self, patch_NJ: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """words_NK, best first, and their scores sign * (f.t - m), fp32. patch_NJ: unit vectors, fp32."""
        keep = min(keep, len(self.text_WJ))
        if not len(patch_NJ):
            none_NK = patch_NJ.new_zeros(0, keep)
            return none_NK.long(), none_NK
        short = keep + Half.MORE > self.columns // BLOCK  # the plain way is the fast way
        chunks = torch.tensor_split(patch_NJ, -(-len(patch_NJ) // self.rows))
        parts = [(self.every if short else self._best)(chunk_NJ, keep) for chunk_NJ in chunks]
        return torch.cat([words for words, _ in parts]), torch.cat([scores for _, scores in parts])

    @property
    def rough(self) -> Rough:
        if self.multiplied is None:
            half = half_is_fast(self.text_WJ.device) if self.half is None else self.half
            with torch.inference_mode(False):  # it outlives the call
                self.multiplied = (Half if half else Full)(self.text_WJ, self.mean_W, self.sign)
        return self.multiplied

    @property
    def columns(self) -> int:
        """Words, and what fills the last block."""
        return -(-len(self.text_WJ) // BLOCK) * BLOCK

    @property
    def rows(self) -> int:
        """Patches whose rough scores are held at a time."""
        return max(1, LIMIT.get(self.text_WJ.device.type, LIMIT["cpu"]) // (4 * self.columns))

    def _best(self, patch_NJ: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        scores = self.rough.into(patch_NJ, self._space(len(patch_NJ)))
        candidates = keep + self.rough.MORE
        words_NK, scores_NK, sure_N = self._tried(patch_NJ, scores, keep, candidates)
        while not bool(sure_N.all()) and candidates * 4 <= self.columns // BLOCK:
            candidates *= 4
            again = torch.where(~sure_N)[0]
            tried = self._tried(patch_NJ[again], scores.of(again), keep, candidates)
            words_NK[again], scores_NK[again], sure_N[again] = tried
        if not bool(sure_N.all()):
            words_NK[~sure_N], scores_NK[~sure_N] = self.every(patch_NJ[~sure_N], keep)
        return words_NK, scores_NK

    def every(self, patch_NJ: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """The definition: all similarities in fp32, then the best."""
        best = (self.sign * (patch_NJ @ self.text_WJ.T - self.mean_W)).topk(keep, dim=1)
        return best.indices, best.values

    def _tried(self, patch_NJ: Tensor, scores: Scores, keep: int, candidates: int) -> tuple[Tensor, Tensor, Tensor]:
        """words_NK and scores_NK from so many candidates, and whether each row is certified."""
        word_NC, last_N = _block_top(scores.rough_NW, candidates)
        rows = ROWS.get(patch_NJ.device.type, ROWS["cpu"])
        parts = zip(torch.split(patch_NJ, rows), torch.split(word_NC, rows), strict=True)
        exact_NC = torch.cat([torch.einsum("nj,ncj->nc", part, _rows(self.text_WJ, words)) for part, words in parts])
        exact_NC -= self.mean_W[word_NC]
        best = (self.sign * exact_NC).topk(keep, dim=1)
        return word_NC.gather(1, best.indices), best.values, scores.above(last_N) < best.values[:, -1]

    def _space(self, rows: int) -> Tensor:
        """Room for so many rows of rough scores, in what the last call left if it was as large."""
        if self.held is None or len(self.held) < rows:
            self.held = None  # before the next one is made
            with torch.inference_mode(False):  # it outlives the call
                self.held = torch.empty(rows, self.columns, dtype=self.rough.dtype, device=self.text_WJ.device)
        return self.held[:rows]


def _block_top(rough_NW: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    """word_NC, the best by the rough scores, and the rough score no other word exceeds."""
    blocks_NMB = rough_NW.view(len(rough_NW), -1, BLOCK)
    top_NC = blocks_NMB.amax(2).topk(candidates, dim=1).indices
    first_N1 = blocks_NMB.shape[1] * torch.arange(len(top_NC), device=top_NC.device).unsqueeze(1)
    best = _rows(blocks_NMB.flatten(0, 1), first_N1 + top_NC).flatten(1).topk(candidates, dim=1)
    block_NC = top_NC.gather(1, best.indices // BLOCK)
    return block_NC * BLOCK + best.indices % BLOCK, best.values[:, -1].float()


def _rows(table_RX: Tensor, row_NC: Tensor) -> Tensor:
    """table_RX[row_NC], a memory copy a row."""
    return table_RX.index_select(0, row_NC.flatten()).view(*row_NC.shape, -1)
