"""Perfect visual tokens: embeddings of words in the place of an image's tokens, and what the layers make of them.

Whoever reads visual tokens at some layer is shown these first, for it is known what must be read: a readout that does
not find it says nothing about an image.

Letters: R rows, Q tokens of a row, N tokens, D width of the language model.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mmalign.vlm.model import VLM

ROW = 128  # tokens in the place of one image
PASS = 8  # rows

Embed = Callable[[Tensor], Tensor]  # number_N of tokens or words -> embed_ND


@torch.no_grad()
def states(
    vlm: "VLM", number_N: Tensor, embed: Embed, layers: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor, dict[int, Tensor]]]:
    """(number_N, embed_ND, {layer: hidden_ND}) of some at a time: what `VLM.hidden_states` gives of an image of ROW
    visual tokens, each the embedding of the word that stands there. Every number comes once, in its order.

    layers: as in `hidden_states`. embed: what the numbers stand for. No gradient, in eval mode.
    """
    with vlm.evaluating():
        for number_RQ in in_rows(number_N.to(vlm.device), _row(vlm)):
            embed_ND = embed(number_RQ.flatten())
            hidden = vlm.states(embed_ND.view(*number_RQ.shape, -1), layers)
            yield number_RQ.flatten(), embed_ND, {n: h_RQD.flatten(0, 1) for n, h_RQD in hidden.items()}


def in_rows(number_N: Tensor, row: int) -> Iterator[Tensor]:
    """number_RQ: at most PASS rows of `row` numbers; what is left, shorter, comes last and alone."""
    whole = len(number_N) // row * row
    if whole:
        yield from torch.split(number_N[:whole].view(-1, row), PASS)
    if whole < len(number_N):
        yield number_N[None, whole:]


def lists(number_T: Tensor, count: int, seed: int) -> Tensor:
    """number_N, N = count: all of number_T in random order, again and again; the same for the same seed."""
    random = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(len(number_T), generator=random) for _ in range(-(-count // len(number_T)))]
    return number_T[torch.cat(rounds)[:count].to(number_T.device)]


def text(vlm: "VLM", texts: Sequence[str]) -> Tensor:
    """token_N of texts, one behind the other, without special tokens."""
    chat = vlm.llm.chat
    special = {chat.mark, *chat.tokenizer.all_special_ids}
    return torch.tensor([i for one in texts for i in chat.plain(one) if i not in special], dtype=torch.long)


def _row(vlm: "VLM") -> int:
    """Tokens of a row: ROW, or what the model can read behind the beginning of a user's turn."""
    return max(1, min(ROW, vlm.llm.context - len(vlm.before_image())))
