"""What a language model is: embeddings in, hidden states out, a head for the rows that need it, and its chat format.

Letters: B samples, S positions, D width, V vocabulary, N rows.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.errors import CheckError, StageError

if TYPE_CHECKING:
    from mmalign.llms.chat import Chat
    from mmalign.llms.decoding import Decoder
    from mmalign.llms.watch import Watch


UNCOMPILED = "engine: {compile: false}"


@dataclass(frozen=True)
class Look:
    """What an objective wants to see of the language model's layers; known before the first step."""

    weights: tuple[float, ...]  # of the outputs of layers 1 .. k, which are added up
    attention: bool  # whether tokens count as much as the text looks at them, or all the same
    # (layer, hidden (..., D)) -> (..., D): what of a layer's output is added up; None: the output as it is
    lens: Callable[[int, Tensor], Tensor] | None = None


@dataclass
class Places:
    """Where the tokens of each image and the text are. text_RS: real positions that are no visual token.

    real_BQ: whether there is such a token, where images have different numbers of them; the others' columns are that of
    the image's last one. None: all are real.
    """

    row_B: Tensor
    column_BQ: Tensor
    text_RS: Tensor
    real_BQ: Tensor | None = None

    def check_text_behind(self, mask_RS: Tensor, ids: Sequence[str]) -> None:
        """Refuse images that no text of their sample comes after: nothing would say how much their tokens count."""
        last_B1 = self.column_BQ[:, -1:]
        mask_BS = mask_RS[self.row_B]
        behind_BS = torch.arange(mask_RS.shape[1], device=mask_RS.device) > last_B1
        own_BS = mask_BS == mask_BS.gather(1, last_B1)
        if not bool((self.text_RS[self.row_B] & behind_BS & own_BS).any(1).all()):
            what = "an image has no text behind it, so no attention says how much its tokens count"
            fix = "the image before the text, or attention: equal"
            raise StageError(what, at=f"one of {', '.join(ids[:4])}", fix=fix)


class LLM(nn.Module):
    """dim: D. depth: decoder layers. vocab: V, rows of the embedding matrix. chat: how turns become tokens.

    context: tokens it can read. Whoever keeps this contract trains, is evaluated, talks and is inspected. What has a
    body here need not be written: decoding then reads everything again at every step, and layers are not watched.
    """

    dim: int
    depth: int
    vocab: int
    chat: "Chat"
    context: int = sys.maxsize
    watchable: bool = False  # whether `watched` shows what the layers make of visual tokens
    keeps_states: bool = False  # whether `keeping` and `normed` are there

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of token ids, any shape; the model's own module is called, so ZeRO-3 gathers its weight."""
        raise NotImplementedError

    def forward(self, embeds_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """hidden_BSD, after the final norm. mask_BS: n at the positions of a row's nth sample, which sees itself alone
        and begins at position 0; 0 at padding."""
        raise NotImplementedError

    def head(self, hidden_ND: Tensor) -> Tensor:
        """logits_NV."""
        raise NotImplementedError

    def nll(self, hidden_ND: Tensor, token_N: Tensor, weight_N: Tensor) -> Tensor:
        """Sum over rows of weight * -log p(token). Scalar, fp32; 0 without rows, the head gone through all the same.

        token_N, weight_N: or (N, T), of T tokens a row.
        """
        log_NV = F.log_softmax(self.head(hidden_ND).float(), dim=-1)
        token_NT, weight_NT = (one if one.dim() == 2 else one[:, None] for one in (token_N, weight_N))
        return -(log_NV.gather(1, token_NT) * weight_NT).sum()

    def kl(self, hidden_ND: Tensor, target_ND: Tensor, target_VD: Tensor, weight_N: Tensor) -> Tensor:
        """Sum over rows of weight * KL(softmax(target T^T) || p), p the head's. Scalar, fp32; 0 without rows, the head
        gone through all the same.

        target_VD: T, a matrix over the same vocabulary. Rows, T and the head get a gradient where they want one.
        """
        log_own_NV = F.log_softmax(self.head(hidden_ND).float(), dim=-1)
        log_target_NV = F.log_softmax((target_ND.to(target_VD.dtype) @ target_VD.T).float(), dim=-1)
        kl_N = (log_target_NV.exp() * (log_target_NV - log_own_NV)).sum(-1)
        return (kl_N * weight_N).sum()

    def decoder(self) -> "Decoder":
        """A fresh reader of rows, bit by bit: what answers are decoded with. One for each batch of prompts."""
        from mmalign.llms.decoding import Rereading  # it imports this module

        return Rereading(self)

    def prepare_looks(self, looks: Sequence[Look]) -> None:
        """Called before the first step with everything that will be watched; a CheckError for what cannot be."""
        raise CheckError(f"{type(self).__name__} cannot be watched at its layers", fix="a CausalLM of transformers")

    def watched(self, looks: Sequence[Look], places: Places) -> AbstractContextManager["Watch"]:
        """Watch one forward pass: what its layers make of the visual tokens."""
        raise NotImplementedError

    def keeping(self, layers: Iterable[int]) -> AbstractContextManager[dict[int, Tensor]]:
        """{layer: hidden_RSD} of one forward pass, with a gradient: of layers 1 to the last but one."""
        raise NotImplementedError

    def normed(self, hidden_ND: Tensor) -> Tensor:
        """The final norm, of what the head is to read from a layer before it."""
        raise NotImplementedError

    def prepare_training(self) -> None:
        """Called when the model is told to learn, before anybody counts its parameters; again changes nothing."""

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        raise NotImplementedError

    def attend(self, kind: str) -> None:
        """By which kernel attention is computed: auto, sdpa, flash or eager. CheckError for one that it has not."""
        if kind != "auto":
            what = f"how {type(self).__name__} computes attention cannot be chosen"
            raise CheckError(what, at="engine.attention", fix="engine: {attention: auto}")

    def compile_layers(self) -> None:
        """Have torch compile the layers, where they learn or pass a gradient on; a CheckError where that cannot be."""
        raise CheckError(f"the layers of {type(self).__name__} cannot be compiled", at="engine.compile", fix=UNCOMPILED)

    def vocabulary(self) -> Tensor:
        """embed_VD, the input embedding matrix itself."""
        raise NotImplementedError

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the model so that a card with `checkpoint: folder` loads it; `state`: weights in place of its own."""
        raise NotImplementedError
