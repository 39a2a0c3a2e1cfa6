"""The contract of a vision encoder, as a check.

Letters: B images, P patches, C width of a patch, J width of the joint space, W words, S pixels.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mmalign.errors import CardError
from mmalign.testing.frames import frames_hold
from mmalign.testing.tensors import learns_as_before, no_scalars, refuses, repeats, shape_is
from mmalign.vision import Vision


def check_vision(make: Callable[[], Vision], folder: Path, reload: Callable[[Path], Vision]) -> None:
    """A vision encoder keeps its contract.

    make: builds it, the same weights every time. folder: where it may be saved. reload: builds it from such a folder,
    as its card does with `checkpoint: folder`. It is built with a small configuration: this runs it a dozen times.
    """
    vision = make().eval()
    no_scalars(vision)
    assert vision.identity(), "identity() is empty"
    assert make().identity() == vision.identity(), "two encoders built alike have different identities"
    images = pictures()
    pixels_B3SS = torch.stack([_pixels(vision, image) for image in images])
    _threads(vision, images, pixels_B3SS)
    frames_hold(vision)
    _other_sizes(vision)
    for dtype in (torch.float32, torch.bfloat16):
        cast = make().eval().to(dtype)
        with torch.no_grad():
            shape_is(cast(pixels_B3SS[:3]), (3, vision.patches, vision.dim), dtype)
        repeats(cast, pixels_B3SS[:3])
    _learns(vision, pixels_B3SS[:2])
    (_joint if vision.joint else _no_joint)(vision, pixels_B3SS[:2])
    _saves(vision, folder, reload, pixels_B3SS[:1])
    learning = make()
    learns_as_before(learning, pixels_B3SS[:2], learning.checkpoint_activations)


def pictures() -> list[Image.Image]:
    """Small pictures of every kind that data may hold."""
    made = [Image.effect_noise((width, height), 80) for width, height in ((40, 30), (30, 40), (9, 9), (1, 1), (90, 1))]
    return [made[0].convert("RGB"), *made, *(made[0].convert(mode) for mode in ("RGBA", "P", "1", "LA", "CMYK"))]


def _pixels(vision: Vision, image: Image.Image) -> Tensor:
    pixels_3SS = vision.pixels(image)
    side = vision.image_size
    what = f"pixels of a {image.size[0]} x {image.size[1]} {image.mode} image are {tuple(pixels_3SS.shape)}"
    assert pixels_3SS.shape == (3, side, side), f"{what}, not (3, {side}, {side})"
    assert pixels_3SS.dtype == torch.float32, f"pixels are {pixels_3SS.dtype}, not fp32"
    assert pixels_3SS.isfinite().all(), f"pixels of a {image.mode} image are not finite"
    twice = vision.pixels(image, scale=2).shape
    assert twice == (3, 2 * side, 2 * side), f"pixels at scale 2 are {tuple(twice)}"
    return pixels_3SS


def _learns(vision: Vision, pixels_B3SS: Tensor) -> None:
    vision.requires_grad_(True)
    vision.train()(pixels_B3SS).square().sum().backward()
    alive = [name for name, p in vision.named_parameters() if p.grad is not None and p.grad.any()]
    assert alive, "no gradient reaches the encoder"
    vision.eval().zero_grad()


@torch.no_grad()
def _joint(vision: Vision, pixels_B3SS: Tensor) -> None:
    patches_BPC, dense_BPJ = vision.both(pixels_B3SS)
    assert torch.allclose(patches_BPC, vision(pixels_B3SS), atol=1e-5), "both() and forward() give other patches"
    shape_is(dense_BPJ, (len(pixels_B3SS), vision.patches, vision.joint), torch.float32)
    text_WJ = vision.words(["dog", "a red car", "dog"])
    shape_is(text_WJ, (3, vision.joint), torch.float32)
    assert torch.allclose(text_WJ.norm(dim=-1), torch.ones(3), atol=1e-4), "words() gives no unit vectors"
    alone_WJ = vision.words(["dog"])
    assert torch.allclose(text_WJ[[0, 2]], alone_WJ.expand(2, -1), atol=1e-4), "a word depends on its neighbours"


def _no_joint(vision: Vision, pixels_B3SS: Tensor) -> None:
    for name, call in (("both", lambda: vision.both(pixels_B3SS)), ("words", lambda: vision.words(["dog"]))):
        refuses(CardError, call, f"joint is 0, but {name}()")


def _threads(vision: Vision, images: list[Image.Image], pixels_B3SS: Tensor) -> None:
    """Reader threads prepare pictures all at once."""
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(vision.pixels, images * 4))
    assert torch.equal(torch.stack(found), pixels_B3SS.repeat(4, 1, 1, 1)), "threads that read at once get other pixels"


@torch.no_grad()
def _other_sizes(vision: Vision) -> None:
    """Patches of another grid than the declared one must not come out."""
    other_B3SS = torch.zeros(1, 3, 2 * vision.image_size, 2 * vision.image_size)
    calls = {"forward": vision, "both": vision.both} if vision.joint else {"forward": vision}
    for name, call in calls.items():
        refuses(CardError, lambda call=call: call(other_B3SS), f"{name}() on images of another size")  # type: ignore[misc]


@torch.no_grad()
def _saves(vision: Vision, folder: Path, reload: Callable[[Path], Vision], pixels_B3SS: Tensor) -> None:
    vision.save(folder / "own")
    assert torch.equal(reload(folder / "own").eval()(pixels_B3SS), vision(pixels_B3SS)), "a saved encoder differs"
    state = {name: value * 1.25 for name, value in vision.state_dict().items()}
    vision.save(folder / "trained", state)
    vision.load_state_dict(state)
    found = reload(folder / "trained").eval()(pixels_B3SS)
    assert torch.equal(found, vision(pixels_B3SS)), "an encoder saved with trained weights differs"
