"""Pictures as a vision-language model of transformers is shown them, from what its processor made of them.

Where a picture is cut up, the model is shown all of it in one square beside its tiles; that square is the picture.

Letters: B images, R rows, T tiles, S pixels of a side, N patches of all images, F numbers of a patch, Q visual tokens.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmalign.errors import CheckError
from mmalign.integrations import layouts
from mmalign.integrations.declared import Parts
from mmalign.integrations.layouts import Size, View

if TYPE_CHECKING:
    from PIL.Image import Image


class Shown(NamedTuple):
    """A picture, and the grids of the model's tokens over it: of all of it, and of its tiles where their grid is known.

    Its own size is that of the picture as it is shown; the views tell shares of its sides.
    """

    picture: "Image"
    views: list[View]


def known(parts: Parts) -> bool:
    """Whether the model's tokens are patches of its pictures."""
    size = (64, 64)
    return layouts.views(parts, size, layouts.tokens_of(parts, size)) is not None


def pictures(
    parts: Parts, batch: Mapping[str, Any], tokens: Sequence[int], rows: Sequence[int], sizes: Sequence[Size] | None
) -> list[Shown]:
    """Of each image of a batch. tokens, rows: Q of each, and the row it is in. sizes: (width, height) of each upright
    picture; None: of one that was cut up the tiles have no view. Raises CheckError where tokens do not lie as the
    layout says.
    """
    if not tokens:
        return []
    pixels: Tensor = batch["pixel_values"].detach().float().cpu()
    grids = batch.get("image_grid_thw")
    each = _squares(parts, pixels, tokens, rows) if grids is None else _unfolded(parts, pixels, grids.tolist())
    own = [_picture(parts, pixels_3HW) for pixels_3HW in each]
    if len(own) == len(tokens):
        views = [_views(parts, one.size, tokens[n], sizes[n] if sizes else None) for n, one in enumerate(own)]
        if all(views):
            return [Shown(one, view) for one, view in zip(own, views, strict=True) if view]
    what = f"{len(tokens)} images in a batch whose tokens do not lie as patches of {len(own)} pictures"
    raise CheckError(what, at="pixel_values", fix="a batch as the model's own processor makes it")


def _views(parts: Parts, shown: Size, tokens: int, size: Size | None) -> list[View] | None:
    """By the picture as it is shown, where that says all; else by its own size."""
    views = layouts.views(parts, shown, tokens)
    if views is not None and len(views) == 1:
        return views
    if size is not None:
        return layouts.views(parts, size, tokens)
    whole = layouts.whole_of_tiles(parts, shown, tokens)
    return None if whole is None else [whole]


def _squares(parts: Parts, pixels: Tensor, tokens: Sequence[int], rows: Sequence[int]) -> list[Tensor]:
    """pixels_3SS of each picture in one square. Tiles are beside it: in front of it, or behind it."""
    if hasattr(parts.processor.image_processor, "image_grid_pinpoints"):  # (B, T, 3, S, S), the whole first
        return [own[0] for own in pixels] if pixels.dim() == 5 else list(pixels)
    tile = layouts.tokens_of_tile(parts)
    if tile is None:
        return list(pixels)
    if pixels.dim() == 4:  # (T, 3, S, S), the tiles of all
        pixels, rows = pixels[None], [0] * len(rows)
    at, squares = dict.fromkeys(rows, 0), []  # (R, T, 3, S, S), the tiles of a row's images
    for count, row in zip(tokens, rows, strict=True):
        at[row] += count // tile
        squares.append(pixels[row, at[row] - 1])
    return squares


def _unfolded(parts: Parts, patches_NF: Tensor, grids: Sequence[Sequence[int]]) -> list[Tensor]:
    """pixels_3HW of each picture from patches of it: those of a token one behind the other, each twice in time."""
    images = parts.processor.image_processor
    side, merge, time = images.patch_size, images.merge_size, images.temporal_patch_size
    made, start = [], 0
    for _, rows, columns in grids:
        own_NF = patches_NF[start : start + rows * columns]
        start += rows * columns
        blocks = own_NF.view(rows // merge, columns // merge, merge, merge, 3, time, side, side)[:, :, :, :, :, 0]
        made.append(blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * side, columns * side))
    return made


def _picture(parts: Parts, pixels_3HW: Tensor) -> "Image":
    """Its colours put back, to within half a step of 255."""
    from PIL import Image as Pillow

    images = parts.processor.image_processor
    if images.do_normalize:
        mean_3, deviation_3 = torch.tensor(images.image_mean), torch.tensor(images.image_std)
        pixels_3HW = pixels_3HW * deviation_3[:, None, None] + mean_3[:, None, None]
    picture_HW3 = (pixels_3HW.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Pillow.fromarray(np.ascontiguousarray(picture_HW3))
