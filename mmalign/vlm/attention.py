"""How much a text about an image looks at each of its visual tokens: BASIC's a_i (arXiv 2508.06895, eq. 5)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmalign.data import MARK, Turn
from mmalign.errors import CheckError
from mmalign.llms import Look
from mmalign.vlm.pictures import listed

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.vlm.model import VLM


@torch.no_grad()
def attention(vlm: "VLM", images: "Image | Sequence[Image]", text: str, layers: int | None = None) -> Tensor:
    """share_BQ, fp32 on the CPU, sum 1 for each image: attention of the text's tokens, and of the chat format's behind
    the image, summed over heads and over layers 1 .. `layers`.

    text: a user's turn, said behind each image alone. layers: None: half of them, as BASIC trains. Raises CheckError
    for a number of layers that there is not, and for a language model whose attention cannot be seen.
    """
    llm, pictures = vlm.llm, listed(images)
    vlm.check_layers([1 if layers is None else layers])
    first = max(1, vlm.depth // 2) if layers is None else layers
    if first < 1:
        raise CheckError(f"attention of {first} layers", at="layers", fix=f"1 to {vlm.depth}")
    look = Look(weights=(1.0,) * first, attention=True)
    llm.prepare_looks([look])
    with vlm.evaluating():
        tokens_BQD = vlm.visual_tokens(pictures)
        ids = llm.chat.prompt([Turn("user", f"{MARK}\n{text}")], [tokens_BQD.shape[1]])
        ids_RS = torch.tensor(ids, device=vlm.device).expand(len(pictures), -1)
        mask_RS = torch.ones_like(ids_RS)
        with llm.watched([look], vlm.places(ids_RS, mask_RS, len(pictures))) as seen:
            llm(vlm.embed(ids_RS, tokens_BQD), mask_RS)
    return seen.shares[look].cpu()
