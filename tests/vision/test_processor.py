"""Our way through an image processor of transformers equals its own bit for bit; Pillow's way stays at hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.vision import FITS
from mmalign.vision.picture import square
from mmalign.vision.processor import ResizeCropNormalize
from tests.vision import tiny

SIZES = [(1, 1), (3, 3), (40, 3), (3, 40), (30, 30), (31, 29), (57, 91), (300, 120), (121, 300)]


def noise(size):
    """A picture with every value and sharp edges, where resizing overshoots most."""
    random = np.random.default_rng(size[0])
    return Image.fromarray(random.integers(0, 2, (size[1], size[0], 3), dtype=np.uint8) * 255)


@pytest.mark.parametrize("kind", [kind for kind in tiny.KINDS if kind != "dinov3"])
@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("settings", [{}, *({"fit": fit} for fit in FITS), {"image_size": 42}])
def test_bit_for_bit_what_the_processor_makes(kind, scale, settings, folders):
    vision = tiny.encoder(folders[kind], **settings)
    assert vision.preprocess
    for size in SIZES:
        for image in (noise(size), tiny.picture(*size)):
            pixels_3SS = vision.pixels(image, scale)
            vision.preprocess, preprocess = None, vision.preprocess
            assert torch.equal(pixels_3SS, vision.pixels(image, scale))
            assert pixels_3SS.is_contiguous()
            vision.preprocess = preprocess


def test_a_processor_that_works_otherwise_is_asked_itself(folders):
    """DINOv3's rescales before it resizes."""
    assert tiny.encoder(folders["dinov3"]).preprocess is None
    processor = tiny.encoder(folders["clip"]).processor
    assert ResizeCropNormalize.from_processor(processor)
    for name, value in (("do_resize", False), ("do_normalize", False), ("do_pad", True), ("size", {"longest_edge": 9})):
        before = getattr(processor, name, None)
        setattr(processor, name, value)
        assert ResizeCropNormalize.from_processor(processor) is None
        setattr(processor, name, before)


@pytest.mark.parametrize("kind", tiny.TEXTED)
def test_pillows_way_is_llavas(kind, folders):
    """Resized by Pillow, then (x / 255 - mean) / std; torchvision's way is near it, and another one."""
    ours, pil = tiny.encoder(folders[kind], fit="pad"), tiny.encoder(folders[kind], fit="pad", pil=True)
    assert pil.preprocess is None
    assert pil.identity() == f"{ours.identity()}, pil"
    assert pil.image_size == ours.image_size
    mean, std = (np.array(getattr(pil.processor, f"image_{name}")) for name in ("mean", "std"))
    largest = 0.0
    for size in SIZES:
        image = tiny.picture(*size)
        side = (pil.image_size,) * 2
        resized = np.asarray(square(image, mean).resize(side, Image.Resampling(int(pil.processor.resample))))
        expected = torch.from_numpy(((resized / 255 - mean) / std).transpose(2, 0, 1)).float()
        assert torch.allclose(pil.pixels(image), expected, atol=1e-5)
        gap = (ours.pixels(image) - expected) * torch.tensor(std)[:, None, None] * 255
        largest = max(largest, float(gap.abs().max()))
    assert 0 < largest < 2.1  # of 255
