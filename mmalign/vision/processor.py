"""The image processors of transformers that resize with torchvision, bit for bit, in half their time.

They copy an image into planes of one colour, and resize those. Resized as Pillow holds it, colour beside colour, the
numbers are the same.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoImageProcessor

from mmalign.errors import CardError
from mmalign.io import document, pretrained
from mmalign.io.document import Side
from mmalign.vision.picture import placed

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.vision.frame import Fit, Frame

# What is done here in place of a processor's own methods; a processor that overrides one is called itself.
METHODS = ("process_image", "_preprocess", "resize", "center_crop", "rescale_and_normalize", "normalize")
MOST = 16_384  # pixels of a side of an image
SETTINGS = ("do_resize", "do_rescale", "do_normalize")


@dataclass(frozen=True)
class ResizeCropNormalize:
    """Resize, crop the middle, normalise.

    height, width: both, in pixels, or `short` alone: of the shorter side, which the other follows. crop: height and
    width. mean_311, std_311: of 8-bit values.
    """

    resample: Any
    height: int | None
    width: int | None
    short: int | None
    crop: tuple[int, int] | None
    mean_311: Tensor
    std_311: Tensor

    @classmethod
    def from_processor(cls, processor: Any) -> "ResizeCropNormalize | None":
        """The same steps as those of a transformers processor; None for one that does something else."""
        size = {key: side for key, side in dict(processor.size).items() if side is not None}
        kind = type(processor)
        is_plain = all(getattr(kind, name, _none).__qualname__ == f"TorchvisionBackend.{name}" for name in METHODS)
        does_all = all(getattr(processor, name, False) for name in SETTINGS) and not getattr(processor, "do_pad", None)
        if not (is_plain and does_all and set(size) in ({"height", "width"}, {"shortest_edge"})):
            return None
        crop = dict(processor.crop_size) if processor.do_center_crop else None
        scale = 1.0 / processor.rescale_factor
        mean_311, std_311 = (
            (torch.tensor(values) * scale)[:, None, None] for values in (processor.image_mean, processor.image_std)
        )
        return cls(
            processor.resample, size.get("height"), size.get("width"), size.get("shortest_edge"),
            (crop["height"], crop["width"]) if crop else None, mean_311, std_311,
        )  # fmt: skip

    def __call__(self, image: "Image", scale: int = 1) -> Tensor:
        """pixels_3HW, fp32, of an RGB image; every size `scale` times as large."""
        from torchvision.transforms.v2.functional import resize  # type: ignore[import-untyped]
        from transformers.image_utils import pil_torch_interpolation_mapping as modes

        image_13HW = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        resized_3HW: Tensor = resize(image_13HW, self._size(image, scale), modes[self.resample], antialias=True)[0]
        if self.crop:
            height, width = (side * scale for side in self.crop)
            top, left = (resized_3HW.shape[1] - height) // 2, (resized_3HW.shape[2] - width) // 2
            resized_3HW = resized_3HW[:, top : top + height, left : left + width]
        return resized_3HW.contiguous().to(torch.float32).sub_(self.mean_311).div_(self.std_311)

    def _size(self, image: "Image", scale: int) -> list[int]:
        """(height, width); the long side is cut to a whole number, as transformers cuts it."""
        if self.height and self.width:
            return [self.height * scale, self.width * scale]
        assert self.short
        shorter, short = min(image.size), self.short * scale
        return [short if side == shorter else int(short * side / shorter) for side in (image.height, image.width)]


def own_fit(processor: Any) -> "Fit":
    """How an image processor of transformers makes a square of a picture."""
    if getattr(processor, "do_pad", None):
        return "pad"
    return "crop" if processor.do_center_crop else "squash"


def read(checkpoint: str, image_size: int | None, fit: "Fit | None", pil: bool) -> "tuple[Any, Fit]":
    """The checkpoint's image processor, and what it does: with a size or a fit of our own all of the middle square, or
    all of the picture; on its own it may cut a margin away."""
    backend = {"backend": "pil"} if pil else {}
    processor: Any = pretrained.read(checkpoint, lambda path: AutoImageProcessor.from_pretrained(path, **backend))
    own = own_fit(processor)
    fit = fit or own
    if image_size is None:
        image_size = side(processor, checkpoint)
        if fit == own != "pad":  # which is done here, before the processor
            return processor, fit
    square_ = {"height": image_size, "width": image_size}
    processor.do_center_crop = fit == "crop"
    if getattr(processor, "do_pad", None):
        processor.do_pad = False
    processor.size = {"shortest_edge": image_size} if fit == "crop" else square_
    processor.crop_size = square_ if fit == "crop" else None
    return processor, fit


def side(processor: Any, checkpoint: str) -> int:
    """The side of the images a processor makes."""
    for size in (dict(processor.size), dict((processor.do_center_crop and processor.crop_size) or {})):
        for name, length in size.items():
            if length is not None and (document.problem(length, Side) or length > MOST):
                what = f"the image processor of {checkpoint}: {name} must be 1 to {MOST:,} pixels, got {length!r}"
                raise CardError(what, at=checkpoint, fix="image_size: a number of pixels")
    size = dict(processor.crop_size if processor.do_center_crop else processor.size)
    if not (height := size.get("height")) or height != size.get("width"):
        what = f"the image processor of {checkpoint} makes images that are not square: {size}"
        raise CardError(what, fix="image_size: a number of pixels")
    return int(height)


def frame_of(
    processor: Any, fit: "Fit", size: tuple[int, int], grid: tuple[int, int], side: int, patch: int
) -> "Frame":
    """Where patches of `patch` pixels lie in a picture of `size` that a processor made a square of `side` pixels."""
    short = dict(processor.size).get("shortest_edge")  # larger than the crop where the processor has a margin
    rows, columns = (n * patch / side for n in grid)
    return placed(fit, size, grid, side, short).trimmed(rows, columns)


def _none() -> None:
    """No method."""
