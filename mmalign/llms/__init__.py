"""What a language model is: embeddings in, hidden states out, a head for the rows that need it, and its chat format.

Letters: B samples, S positions, D width, V vocabulary, N rows.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmalign.errors import CheckError, StageError
from mmalign.objectives import Look

if TYPE_CHECKING:
    from mmalign.llms.chat import Chat
    from mmalign.llms.watch import Seen


@dataclass
class Places:
    """Where the tokens of each image and the text are. text_RS: real positions that are no visual token."""

    row_B: Tensor
    column_BQ: Tensor
    text_RS: Tensor

    def check_text_behind(self, ids: Sequence[str]) -> None:
        """Refuse images that no text comes after: nothing would say how much their tokens count."""
        column_S = torch.arange(self.text_RS.shape[1], device=self.text_RS.device)
        last_R = torch.where(self.text_RS, column_S, -1).amax(1)
        if bool((last_R[self.row_B] < self.column_BQ[:, -1]).any()):
            what = "an image has no text behind it, so no attention says how much its tokens count"
            fix = "the image before the text, or attention: equal"
            raise StageError(what, at=f"one of {', '.join(ids[:4])}", fix=fix)


class LLM(nn.Module):
    """dim: D. depth: decoder layers. vocab: V. chat: how turns become tokens."""

    dim: int
    depth: int
    vocab: int
    chat: "Chat"

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of token ids, any shape; the model's own module is called, so ZeRO-3 gathers its weight."""
        raise NotImplementedError

    def forward(self, embeds_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """hidden_BSD, after the final norm. mask_BS: 1 at real positions."""
        raise NotImplementedError

    def head(self, hidden_ND: Tensor) -> Tensor:
        """logits_NV."""
        raise NotImplementedError

    def prepare_looks(self, looks: Sequence[Look]) -> None:
        """Called before the first step with everything that will be watched; a CheckError for what cannot be."""
        raise CheckError(f"{type(self).__name__} cannot be watched at its layers", fix="a CausalLM of transformers")

    def watched(self, looks: Sequence[Look], places: Places) -> AbstractContextManager["Seen"]:
        """Watch one forward pass: what its layers make of the visual tokens."""
        raise NotImplementedError

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        raise NotImplementedError

    def vocabulary(self) -> Tensor:
        """embed_VD, the input embedding matrix itself."""
        raise NotImplementedError

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the model so that a card with `checkpoint: folder` loads it; `state`: weights in place of its own."""
        raise NotImplementedError
