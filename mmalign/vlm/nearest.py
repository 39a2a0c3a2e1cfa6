"""What visual tokens say: the vocabulary's nearest words to each, as the adapter makes it and at the LLM's layers.

Letters: Q visual tokens of an image, D width of the language model, V its vocabulary, K words kept, S pixels.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files as resources
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.data import MARK, Turn
from mmalign.errors import CheckError
from mmalign.llms import Look
from mmalign.vision import Vision
from mmalign.vlm.model import Batch, Model

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.vlm.folder import MMAlignModel

ASKED = "Describe this image."  # the text behind the image; a token does not see what comes after it
WIDE = 336  # pixels of the shown picture, at least


@dataclass
class Seen:
    """One image at one layer. words: of every visual token, the nearest first, each with its cosine."""

    image: str  # its name
    layer: int  # 0: as the adapter makes it; i: hidden_states[i] of transformers
    grid: tuple[int, int] | None  # rows, columns; None where a token is no patch
    words: list[list[tuple[str, float]]]


def look(
    model: "MMAlignModel", images: Sequence[tuple[str, "Image"]], layers: Sequence[int] = (0,), keep: int = 5
) -> list[Seen]:
    """The `keep` nearest words of every visual token of every (name, image), layer by layer.

    Nearest by cosine to the rows of the language model's input embedding, those without a token and the image mark's
    left out: nobody trained them. Raises CheckError for a layer that is none.
    """
    for layer in layers:
        if not 0 <= layer <= model.llm.depth:
            fix = f"0 (what the adapter makes) to {model.llm.depth}"
            raise CheckError(f"no layer {layer}: the language model has {model.llm.depth}", at="--layers", fix=fix)
    chat, every_VD = model.llm.chat, model.llm.vocabulary().detach()
    real_V = torch.tensor([i for i in range(min(len(every_VD), len(chat.tokenizer))) if i != chat.mark])
    embed_VD = F.normalize(every_VD[real_V.to(every_VD.device)].float(), dim=-1)
    grid = model.adapter.grid if model.adapter.keeps_grid else None
    found = []
    for name, image in images:
        for layer, visual_QD in tokens(model, image, layers).items():
            cosine_QK, row_QK = top(visual_QD, embed_VD, keep)
            rows = zip(real_V[row_QK.cpu()].tolist(), cosine_QK.tolist(), strict=True)
            words = [[(spelled(chat.tokenizer, i), c) for i, c in zip(*row, strict=True)] for row in rows]
            found.append(Seen(name, layer, grid, words))
    return found


def top(visual_QD: Tensor, embed_VD: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """cosine_QK and the rows of embed_VD (unit vectors) they belong to, nearest first."""
    alike_QV = F.normalize(visual_QD.float(), dim=-1) @ embed_VD.T
    found = alike_QV.topk(min(keep, len(embed_VD)), dim=-1)
    return found.values, found.indices


@torch.no_grad()
def tokens(model: "MMAlignModel", image: "Image", layers: Sequence[int]) -> dict[int, Tensor]:
    """{layer: visual_QD} of an image with a question behind it."""
    chat, whole = model.llm.chat, Model(model.vision, model.adapter, model.llm, {}).eval()
    ids_RS = torch.tensor([chat.prompt([Turn("user", f"{MARK}\n{ASKED}")], [model.adapter.tokens])])
    real_RS = torch.ones_like(ids_RS)
    pixels_B3SS = model.vision.pixels(image)[None]
    batch = Batch(ids_RS, real_RS, real_RS * 0.0, pixels_B3SS, chat.mark).to(next(model.parameters()).device)
    visual_BQD, _ = whole.see(batch)
    assert visual_BQD is not None
    found = {0: visual_BQD[0]}
    if any(layers):
        watch = Look(weights=(1.0,) * max(layers), attention=False)
        with model.llm.watched([watch], whole.places(batch)) as seen:
            seen.kept = []
            model.llm(whole.embed(batch, visual_BQD), batch.mask_RS)
        found |= {number: hidden_BQD[0] for number, hidden_BQD in enumerate(seen.kept, 1)}
    return {layer: found[layer] for layer in layers}


def spelled(tokenizer: Any, token: int) -> str:
    """A vocabulary token as text, without the mark of a word's inner piece."""
    text = str(tokenizer.decode([token])).strip()
    bare = text.removeprefix("##")
    return bare if bare.strip("#") else text or "␣"  # headings of Markdown, `##`, are words of other tokenizers


def seen(vision: Vision, image: "Image") -> "Image":
    """The picture as the encoder is given it: cropped, padded and resized, its colours put back.

    An encoder's colours are (colour - mean) / deviation; black and white tell both.
    """
    from PIL import Image as Pillow

    side = (vision.image_size,) * 2
    low_3, high_3 = (vision.pixels(Pillow.new("RGB", side, (v, v, v))).mean((1, 2)) for v in (0, 255))
    pixels_3SS = (vision.pixels(image) - low_3[:, None, None]) / (high_3 - low_3)[:, None, None]
    shown_SS3 = (pixels_3SS.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Pillow.fromarray(np.ascontiguousarray(shown_SS3))


def page(found: Sequence[Seen], pictures: dict[str, "Image"], title: str) -> str:
    """One HTML page that needs nothing else. pictures: by name, as the encoder was given them."""
    shown = [
        {
            "name": name,
            "png": _png(picture),
            "layers": [one for one in found if one.image == name],
        }
        for name, picture in pictures.items()
    ]
    text = resources("mmalign.vlm").joinpath("nearest.html").read_text(encoding="utf-8")
    made = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
    return made.render(title=title, pictures=shown, wide=WIDE)


def _png(picture: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
