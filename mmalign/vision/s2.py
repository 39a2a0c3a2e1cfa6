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
from mmalign.vision import Frame, Vision, check_pixels

if TYPE_CHECKING:
    from PIL.Image import Image


class S2(Vision):
    """An encoder's patches at several scales, side by side in the channels: C is `scales` times the encoder's.

    encoder: the encoder that sees the tiles. scales: how many times its image size the copies of the image are; 1 is
    the encoder's own view, which labels are taken from. All tiles go through the encoder in one batch: with scales
    1, 2, 3 it sees 14 images for one, and takes the memory for them. A CardError for other scales.
    """

    def __init__(self, encoder: Vision, scales: Sequence[int] = (1, 2, 3)) -> None:
        super().__init__()
        if 1 not in scales or list(scales) != sorted(set(scales)) or min(scales) < 1:
            what = f"scales are 1 and larger whole numbers, in order, not {list(scales)}"
            raise CardError(what, at="args.scales", fix="scales: [1, 2, 3]")
        self.encoder, self.scales = encoder, tuple(scales)
        self.dim, self.grid = len(scales) * encoder.dim, encoder.grid
        self.image_size, self.joint, self.fit = scales[-1] * encoder.image_size, encoder.joint, encoder.fit

    def pixels(self, image: "Image", scale: int = 1) -> Tensor:
        """pixels_3SS at the largest scale; the smaller copies are made from it."""
        return self.encoder.pixels(image, scale * self.scales[-1])

    def frame(self, size: tuple[int, int]) -> Frame:
        """That of the encoder's own view: the larger copies show the same, and their patches are averaged to its."""
        return self.encoder.frame(size)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """patches_BPC."""
        return self._concat(self._encode([self.tiles(pixels_B3SS, scale) for scale in self.scales]))

    def both(self, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """patches_BPC, and dense_BPJ of the encoder's own view."""
        base_BPC, dense_BPJ = self.encoder.both(self.tiles(pixels_B3SS, 1))
        larger = [self.tiles(pixels_B3SS, scale) for scale in self.scales[1:]]
        if not larger:
            return base_BPC, dense_BPJ
        return self._concat([base_BPC, *self._encode(larger)]), dense_BPJ

    def tiles(self, pixels_B3SS: Tensor, scale: int) -> Tensor:
        """The image at a scale, cut into s x s tiles of the encoder's size: (T, 3, size, size), row by row.

        The paper does not say how copies are made. Ours are smoothed: without, each third pixel would be dropped.
        """
        check_pixels(pixels_B3SS, self.image_size, "S2")
        size = self.encoder.image_size
        if scale != self.scales[-1]:
            side = scale * size
            smaller_B3SS = F.interpolate(pixels_B3SS.float(), (side, side), mode="bicubic", antialias=True)
            pixels_B3SS = smaller_B3SS.to(pixels_B3SS.dtype)
        tiles = pixels_B3SS.reshape(-1, 3, scale, size, scale, size)
        return tiles.permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, size, size)

    def _encode(self, tiles: Sequence[Tensor]) -> Sequence[Tensor]:
        """patches_TPC of the tiles of each scale, from one pass."""
        patches_TPC: Tensor = self.encoder(torch.cat(list(tiles)))
        return torch.split(patches_TPC, [len(of_scale) for of_scale in tiles])

    def _concat(self, patches: Sequence[Tensor]) -> Tensor:
        """patches_BPC from patches_TPC of each scale."""
        return torch.cat([self._merge(*pair) for pair in zip(patches, self.scales, strict=True)], dim=-1)

    def _merge(self, patches_TPC: Tensor, scale: int) -> Tensor:
        """The patches of an image's tiles as one map of s H x s W, averaged back to H x W."""
        rows, columns = self.grid
        width = patches_TPC.shape[-1]
        map_ = patches_TPC.reshape(-1, scale, scale, rows, columns, width).permute(0, 1, 3, 2, 4, 5)
        return map_.reshape(-1, rows, scale, columns, scale, width).mean((2, 4)).flatten(1, 2)

    def words(self, texts: Sequence[str]) -> Tensor:
        return self.encoder.words(texts)

    def requires_grad_(self, requires_grad: bool = True) -> "S2":
        self.encoder.requires_grad_(requires_grad)
        return self

    def compile_layers(self) -> bool:
        return self.encoder.compile_layers()

    def checkpoint_activations(self) -> None:
        self.encoder.checkpoint_activations()

    def identity(self) -> str:
        return f"{self.encoder.identity()}, at {', '.join(f'{scale}x' for scale in self.scales)}"

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """The encoder alone: it is all that learns."""
        if state is not None:
            state = {name.removeprefix("encoder."): value for name, value in state.items()}
        self.encoder.save(folder, state)
