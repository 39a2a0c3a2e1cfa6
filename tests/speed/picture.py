"""From a JPEG's bytes to CLIP's 336 pixels, padded to a square as LLaVA-1.5 does: against the image processor that
resizes with Pillow, which LLaVA had; and Pillow's own way here (`pil: true`), bit for bit that processor's.

Both sides decode with Pillow. Pictures of 640 x 480, as most of LLaVA's are, and of 2048 x 1536.
"""

import io
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor

from mmalign.data import decode
from mmalign.vision.hf import HFVision
from mmalign.vision.picture import square

from . import Pairs, in_turn
from ._work import clock

TARGET = 1 / 3
SAME = 1.1  # Pillow's way, of the processor's time
TIMES = 15
SIDE = 336
SIZES = [(640, 480), (2048, 1536)]


def measure() -> dict[str, Pairs]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        fast, pil = eyes(Path(folder))
    found: dict[str, Pairs] = {}
    for size in SIZES:
        data = photo(*size)
        for eye, way, target in ((fast, "", TARGET), (pil, ", pil", SAME)):
            ours, theirs = partial(prepared, eye, data), partial(processor, pil, data)
            found[f"picture {size[0]} px{way} / PIL"] = made = in_turn(ours, theirs, TIMES, clock)
            made.target = target
    return found


def eyes(folder: Path) -> tuple[HFVision, HFVision]:
    """CLIP at 336 pixels with one small layer; and the same with Pillow's way."""
    tower = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1}
    vision = {**tower, "image_size": SIDE, "patch_size": 14}
    CLIPConfig(vision_config=vision, text_config={"num_hidden_layers": 1}).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    fast, pil = (HFVision(str(folder), layer=-1, fit="pad", random=True, pil=pil) for pil in (False, True))
    return fast, pil


def prepared(eye: HFVision, data: bytes) -> Tensor:
    """As training and evaluation do it."""
    return eye.pixels(decode.picture(data, "a benchmark's picture"))


def processor(pil: HFVision, data: bytes) -> Tensor:
    """LLaVA's process_images: Pillow decodes, pads and resizes."""
    image = square(Image.open(io.BytesIO(data)).convert("RGB"), pil.processor.image_mean)
    pixels_3SS: Tensor = pil.processor(images=image, return_tensors="pt")["pixel_values"][0]
    return pixels_3SS


def photo(width: int, height: int) -> bytes:
    """A JPEG of soft shapes and grain, of a photo's size in bytes."""
    random = np.random.default_rng(0)
    shapes = random.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    soft_HW3 = np.asarray(Image.fromarray(shapes).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    grainy_HW3 = (soft_HW3 + random.integers(-12, 13, soft_HW3.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grainy_HW3).save(file, "JPEG", quality=90)
    return file.getvalue()
