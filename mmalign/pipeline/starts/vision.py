"""{{ name }}: a vision encoder for mmalign.

Letters: B images, P patches, C width of a patch, S pixels.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from mmalign.vision import Frame, Vision, check_pixels
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed


class {{ cls }}(Vision):
    """One line that says what it sees; `mmalign list vision` shows it.

    checkpoint: a folder that `save` wrote; None: drawn from `seed`. dim: C. image_size, patch: in pixels.
    """

    fit = "squash"  # `pixels` makes the sides of a picture equal, so the patches cover all of it: see `frame`

    # An encoder with a text tower sets `joint` when it is built, and writes `both` and `words`, too.

    def __init__(
        self, checkpoint: str | None = None, dim: int = 96, image_size: int = 72, patch: int = 12, seed: int = 0
    ) -> None:
        super().__init__()
        self.dim, self.image_size, self.grid = dim, image_size, (image_size // patch, image_size // patch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.cut = nn.Conv2d(3, dim, patch, stride=patch)
            self.place_PC = nn.Parameter(0.02 * torch.randn(self.patches, dim))
            self.layers = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        if checkpoint:
            self.load_state_dict(load_file(Path(checkpoint) / "model.safetensors"))
        self.recompute = False

    def pixels(self, image: Image.Image, scale: int = 1) -> Tensor:
        side = self.image_size * scale
        small = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        bytes_SS3 = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(side, side, 3)
        return bytes_SS3.permute(2, 0, 1) / 127.5 - 1

    def frame(self, size: tuple[int, int]) -> Frame:
        return Frame(self.fit, size, self.grid)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        check_pixels(pixels_B3SS, self.image_size, "{{ name }}")
        patches_BPC = self.cut(pixels_B3SS.to(self.cut.weight.dtype)).flatten(2).transpose(1, 2) + self.place_PC
        if self.recompute and self.training:
            return patches_BPC + checkpointed(self.layers, patches_BPC, use_reentrant=False)
        return patches_BPC + self.layers(patches_BPC)

    def checkpoint_activations(self) -> None:
        self.recompute = True

    def identity(self) -> str:
        weights = b"".join(value.detach().cpu().float().numpy().tobytes() for value in self.state_dict().values())
        return f"{{ name }} {self.image_size} {hashlib.sha256(weights).hexdigest()[:12]}"

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        weights = self.state_dict() if state is None else state
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
