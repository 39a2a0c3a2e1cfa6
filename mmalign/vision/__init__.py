"""What a vision encoder is: pixels to patches and, where it has a text tower, both in one joint space.

Letters: B images, H x W = P patches, C width of a patch, J width of the joint space, W words, N = B x P, S pixels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmalign.errors import CardError
from mmalign.vision.frame import FITS as FITS
from mmalign.vision.frame import Fit as Fit
from mmalign.vision.frame import Frame as Frame

if TYPE_CHECKING:
    from PIL.Image import Image


class Vision(nn.Module):
    """pixels_B3SS -> patches_BPC; S is `image_size`.

    dim: C. grid: (H, W). image_size: S, in pixels. joint: J, 0 for an encoder without a text tower, which cannot do
    `both` and `words`. fit: how `pixels` makes a square of a picture, as `frame` says. Subclasses set them when they
    are built. `forward` and `both` raise a CardError for images of another size.
    """

    dim: int
    grid: tuple[int, int]
    image_size: int
    joint: int = 0
    fit: str = ""

    @property
    def patches(self) -> int:
        """P."""
        return self.grid[0] * self.grid[1]

    def train(self, mode: bool = True) -> Self:
        """As of any module, but that BatchNorm keeps the statistics it was trained with, and no layer is left out.

        A micro-batch is too small to take statistics from, an image's patches would depend on its neighbours, and
        activations that are made again would count twice. Stochastic depth (timm's DropPath) is a habit of classifiers.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm) or type(module).__name__ == "DropPath":
                module.eval()
        return self

    def pixels(self, image: "Image", scale: int = 1) -> Tensor:
        """pixels_3SS of one image, prepared as the encoder was trained. Runs on the CPU, in reader threads.

        scale: so many times the encoder's size, for wrappers that look closer.
        """
        raise NotImplementedError

    def frame(self, size: tuple[int, int]) -> Frame:
        """Where the patches lie in an upright picture of (width, height), as `pixels` prepares it. Needs no picture.

        A CardError from an encoder that does not say it.
        """
        what = f"{type(self).__name__} does not say where its patches lie in a picture: it has no `frame`"
        fix = "def frame(self, size): return Frame(self.fit, size, self.grid)  # where `pixels` squashes, fit: squash"
        raise CardError(what, at=f"{type(self).__module__}.{type(self).__qualname__}", fix=fix)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """patches_BPC."""
        raise NotImplementedError

    def both(self, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """patches_BPC and dense_BPJ, the same patches in the joint space of images and text, from one pass.

        A CardError where `joint` is 0.
        """
        raise no_text(self.identity())

    def words(self, texts: Sequence[str]) -> Tensor:
        """text_WJ: texts in the joint space, one unit vector each, fp32. A CardError where `joint` is 0."""
        raise no_text(self.identity())

    def compile_layers(self) -> bool:
        """Have torch compile the layers; whether they are, which is nothing to rely on."""
        return False

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        raise NotImplementedError

    def identity(self) -> str:
        """What tells this encoder, weights and settings, from another; not its fit, which a label store keeps apart.

        A label store of one is refused where another is expected.
        """
        raise NotImplementedError

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the encoder so that a card with `checkpoint: folder` loads it; `state`: weights in place of its own."""
        raise NotImplementedError


def depth(layer: int, layers: int, name: str) -> int:
    """How many layers patches pass through: every encoder's `layer` counts like transformers' hidden_states.

    A CardError where the encoder `name` has no such layer.
    """
    number = layers + 1 + layer if layer < 0 else layer
    if not 0 < number <= layers:
        fix = f"1 to {layers}, or -1 (the last) to -{layers}"
        raise CardError(f"no layer {layer} in {name}, which has {layers} layers", at="args.layer", fix=fix)
    return number


def no_text(name: str) -> CardError:
    """What `both` and `words` raise for an encoder whose `joint` is 0."""
    fix = "take labels from an encoder with a text tower, such as CLIP or SigLIP"
    return CardError(f"{name} has no text tower", fix=fix)


def check_pixels(pixels_B3SS: Tensor, side: int, name: str) -> None:
    """A CardError for images of another size than the encoder's, whose patches would not be the declared grid."""
    if pixels_B3SS.shape[-2:] != (side, side):
        size = " x ".join(map(str, pixels_B3SS.shape[-2:]))
        raise CardError(f"{name} takes images of {side} x {side} pixels, got {size}", fix="prepare them with `pixels`")
