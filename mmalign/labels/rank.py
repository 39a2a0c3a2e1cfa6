"""The best words of many, for many patches: exact, at the price of a bf16 matrix product.

Letters: N patches, W words, J width of the joint space, K words kept, C candidates.

The similarity f.t - m (m: the word's mean, 0 where it is not centred) is ranked in bf16 first: against words with their
common direction taken off, since f.(t - mu) orders words as f.t does and a bank that lies on a cone then rounds to half
the error. The best C of it are scored again in fp32. A row is certified when no word outside its candidates can reach
its K-th best: the rounding error is bounded by what was rounded off (Cauchy-Schwarz), not guessed. Rows that are not
are ranked with more candidates, at last with all words.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

BLOCK = 64  # words whose maximum is taken first: the K best words lie in the K blocks with the largest maxima
MORE = 14  # candidates beyond K in the first pass; with fewer, many rows need a second
# bytes of rough scores held, at a time and between calls: new memory costs as much as the maxima
LIMIT = {"cpu": 64 << 20, "cuda": 512 << 20}
# patches whose candidates are scored at a time: on a CPU their words stay in the cache, a GPU wants few large calls
ROWS = {"cpu": 48, "cuda": 1024}
ALIGN = 32  # columns; thin tails slow the product down
HALF_ULP = 2.0**-8  # of a bf16 number, relative, with room for the order of summation


@dataclass
class Bank:
    """Words as unit vectors, ready to be ranked. text_WJ: fp32; mean_W: taken off each word's similarity."""

    text_WJ: Tensor
    mean_W: Tensor
    sign: int
    rough_WJ: Tensor  # bf16: sign * (text - its mean), then, if any, -sign * mean in three columns, then zeros
    length: float  # the longest row of what `rough` stands for
    lost: float  # the longest row of what its rounding took away
    centre_J: Tensor  # the words' mean
    held: Tensor | None = field(default=None, repr=False)  # where the last call's rough scores lay

    @classmethod
    def of(cls, text_WJ: Tensor, mean_W: Tensor | None = None, sign: int = 1) -> "Bank":
        mean_W = torch.zeros(len(text_WJ), device=text_WJ.device) if mean_W is None else mean_W
        centre_J = text_WJ.mean(0)
        exact_WJ = sign * (text_WJ - centre_J)
        rough_WJ = exact_WJ.bfloat16()
        if bool(mean_W.any()):
            rough_WJ = torch.cat([rough_WJ, _parts(-sign * (mean_W - mean_W.mean()))], 1)
        rough_WJ = torch.nn.functional.pad(rough_WJ, (0, -rough_WJ.shape[1] % ALIGN, 0, -len(rough_WJ) % BLOCK))
        lost = (exact_WJ - rough_WJ[: len(exact_WJ), : exact_WJ.shape[1]].float()).norm(dim=1).max()
        return cls(text_WJ, mean_W, sign, rough_WJ, float(exact_WJ.norm(dim=1).max()), float(lost), centre_J)

    def to(self, device: torch.device) -> "Bank":
        moved = {name: getattr(self, name).to(device) for name in ("text_WJ", "mean_W", "rough_WJ", "centre_J")}
        return replace(self, **moved, held=None)

    @torch.no_grad()
    def best(self, patch_NJ: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """words_NK, best first, and their scores sign * (f.t - m), fp32. patch_NJ: unit vectors, fp32."""
        keep = min(keep, len(self.text_WJ))
        if not len(patch_NJ):
            none_NK = patch_NJ.new_zeros(0, keep)
            return none_NK.long(), none_NK
        parts = [self._best(chunk_NJ, keep) for chunk_NJ in torch.split(patch_NJ, self.rows)]
        return torch.cat([words for words, _ in parts]), torch.cat([scores for _, scores in parts])

    @property
    def rows(self) -> int:
        """Patches whose rough scores are held at a time."""
        place = self.rough_WJ.device.type
        return max(1, LIMIT.get(place, LIMIT["cpu"]) // ((4 if place == "cuda" else 2) * len(self.rough_WJ)))

    def _best(self, patch_NJ: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        if keep + MORE > len(self.rough_WJ) // BLOCK:  # a short list: the plain way is the fast way
            return self.every(patch_NJ, keep)
        rough_NW, lost_N = self._rough(patch_NJ)
        candidates = keep + MORE
        words_NK, scores_NK, sure_N = self._tried(patch_NJ, rough_NW, lost_N, keep, candidates)
        while not bool(sure_N.all()) and candidates * 4 <= rough_NW.shape[1] // BLOCK:
            candidates *= 4
            again = torch.where(~sure_N)[0]
            tried = self._tried(patch_NJ[again], rough_NW[again], lost_N[again], keep, candidates)
            words_NK[again], scores_NK[again], sure_N[again] = tried
        if not bool(sure_N.all()):
            words_NK[~sure_N], scores_NK[~sure_N] = self.every(patch_NJ[~sure_N], keep)
        return words_NK, scores_NK

    def every(self, patch_NJ: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """The definition: all similarities in fp32, then the best."""
        best = (self.sign * (patch_NJ @ self.text_WJ.T - self.mean_W)).topk(keep, dim=1)
        return best.indices, best.values

    def _tried(
        self, patch_NJ: Tensor, rough_NW: Tensor, lost_N: Tensor, keep: int, candidates: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """words_NK and scores_NK from so many candidates, and whether each row is certified."""
        word_NC, last_N = _block_top(rough_NW, candidates)
        rows = ROWS.get(patch_NJ.device.type, ROWS["cpu"])
        parts = zip(torch.split(patch_NJ, rows), torch.split(word_NC, rows), strict=True)
        exact_NC = torch.cat([torch.einsum("nj,ncj->nc", part, _rows(self.text_WJ, words)) for part, words in parts])
        exact_NC -= self.mean_W[word_NC]
        best = (self.sign * exact_NC).topk(keep, dim=1)
        # on the scale of the rough scores: what both centrings took off is the same for every word of a row
        shift_N = self.sign * (patch_NJ @ self.centre_J - self.mean_W.mean())
        above_N = last_N + HALF_ULP * last_N.abs() + lost_N  # no other word is above this
        return word_NC.gather(1, best.indices), best.values, above_N < best.values[:, -1] - shift_N

    def _rough(self, patch_NJ: Tensor) -> tuple[Tensor, Tensor]:
        """rough_NW, in bf16 but on CUDA in fp32, and how far rounding the factors can have moved a row's scores."""
        half_NJ = patch_NJ.bfloat16()
        wide_NJ = torch.nn.functional.pad(half_NJ, (0, self.rough_WJ.shape[1] - half_NJ.shape[1]))
        wide_NJ[:, patch_NJ.shape[1] : patch_NJ.shape[1] + 3] = 1  # times what is taken off, or times padding
        lost_N = (patch_NJ - half_NJ.float()).norm(dim=1) * self.length + half_NJ.float().norm(dim=1) * self.lost
        more = {"out_dtype": torch.float32} if patch_NJ.is_cuda else {}
        rough_NW = self._space(len(patch_NJ), torch.float32 if patch_NJ.is_cuda else torch.bfloat16)
        torch.mm(wide_NJ, self.rough_WJ.T, out=rough_NW, **more)
        rough_NW[:, len(self.text_WJ) :] = -torch.inf  # the padding
        return rough_NW, lost_N

    def _space(self, rows: int, dtype: torch.dtype) -> Tensor:
        """Room for so many rows of rough scores, in what the last call left if it was as large."""
        if self.held is None or len(self.held) < rows:
            with torch.inference_mode(False):  # it outlives the call
                self.held = torch.empty(rows, len(self.rough_WJ), dtype=dtype, device=self.rough_WJ.device)
        return self.held[:rows]


def _parts(value_W: Tensor) -> Tensor:
    """fp32 numbers as sums of three bf16 ones: all but exact."""
    parts = []
    for _ in range(3):
        parts.append(value_W.bfloat16())
        value_W = value_W - parts[-1].float()
    return torch.stack(parts, 1)


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
