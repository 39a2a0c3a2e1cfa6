"""S2 (arXiv 2403.13043): an encoder that also looks closer, at tiles of larger copies of the image.

Letters as in mmalign.vision; s tiles a side, T = B x s x s tiles.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import CardError
from mmalign.vision import Vision, check_pixels

if TYPE_CHECKING:
    from PIL.Image import Image


class S2(Vision):
    """An encoder's patches at several scales, side by side in the channels: C is `scales` times the encoder's.

    encoder: the encoder that sees the tiles. scales: how many times its image size the copies of the image are; 1 is
    the encoder's own view, which labels are taken from. All tiles go through the encoder in one batch: with scales
    1, 2, 3 it sees 14 images for one, and takes the memory for them.
    """

    def __init__(self, encoder: Vision, scales: Sequence[int] = (1, 2, 3)) -> None:
        super().__init__()
        if 1 not in scales or list(scales) != sorted(set(scales)) or min(scales) < 1:
            what = f"scales are 1 and larger whole numbers, in order, not {list(scales)}"
            raise CardError(what, at="args.scales", fix="scales: [1, 2, 3]")
        self.encoder, self.scales = encoder, tuple(scales)
        self.dim, self.grid = len(scales) * encoder.dim, encoder.grid
        self.image_size, self.joint = scales[-1] * encoder.image_size, encoder.joint

    def pixels(self, image: "Image", scale: int = 1) -> Tensor:
        """pixels_3SS at the largest scale; the smaller copies are made from it."""
        return self.encoder.pixels(image, scale * self.scales[-1])

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """patches_BPC."""
        tiles = [self.tiles(pixels_B3SS, scale) for scale in self.scales]
        seen_TPC: Tensor = self.encoder(torch.cat(tiles))
        return self._joined(torch.split(seen_TPC, [len(some) for some in tiles]))

    def both(self, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """patches_BPC, and dense_BPJ of the encoder's own view."""
        base_BPC, dense_BPJ = self.encoder.both(self.tiles(pixels_B3SS, 1))
        closer = [self.tiles(pixels_B3SS, scale) for scale in self.scales[1:]]
        if not closer:
            return base_BPC, dense_BPJ
        seen_TPC: Tensor = self.encoder(torch.cat(closer))
        return self._joined([base_BPC, *torch.split(seen_TPC, [len(some) for some in closer])]), dense_BPJ

    def tiles(self, pixels_B3SS: Tensor, scale: int) -> Tensor:
        """The image at a scale, cut into s x s tiles of the encoder's size: (T, 3, size, size), row by row.

        The paper does not say how copies are made. Ours are smoothed: without, each third pixel would be dropped.
        """
        check_pixels(pixels_B3SS, self.image_size, "S2")
        size = self.encoder.image_size
        if scale != self.scales[-1]:
            wanted = (scale * size, scale * size)
            small_B3SS = F.interpolate(pixels_B3SS.float(), wanted, mode="bicubic", antialias=True)
            pixels_B3SS = small_B3SS.to(pixels_B3SS.dtype)
        cut = pixels_B3SS.reshape(-1, 3, scale, size, scale, size)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, size, size)

    def _joined(self, seen: Sequence[Tensor]) -> Tensor:
        return torch.cat([self._pooled(*both) for both in zip(seen, self.scales, strict=True)], dim=-1)

    def _pooled(self, seen_TPC: Tensor, scale: int) -> Tensor:
        """The patches of an image's tiles as one map of s H x s W, averaged back to H x W."""
        rows, columns = self.grid
        wide = seen_TPC.shape[-1]
        map_ = seen_TPC.reshape(-1, scale, scale, rows, columns, wide).permute(0, 1, 3, 2, 4, 5)
        return map_.reshape(-1, rows, scale, columns, scale, wide).mean((2, 4)).flatten(1, 2)

    def words(self, texts: Sequence[str]) -> Tensor:
        return self.encoder.words(texts)

    def checkpoint_activations(self) -> None:
        self.encoder.checkpoint_activations()

    def identity(self) -> str:
        return f"{self.encoder.identity()}, at {', '.join(f'{scale}x' for scale in self.scales)}"

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """The encoder alone: it is all that learns."""
        own = None if state is None else {name.removeprefix("encoder."): value for name, value in state.items()}
        self.encoder.save(folder, own)
