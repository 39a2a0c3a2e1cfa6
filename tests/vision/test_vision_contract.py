"""What breaks a vision encoder's contract is said."""

import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from mmalign.errors import CardError
from mmalign.testing import check_vision
from mmalign.vision import Frame, Vision, check_pixels, depth, no_text
from mmalign.vision.picture import placed, square

SIDE = 8


class Plain(Vision):
    """Keeps the contract: 2 x 2 patches of 4 pixels. Each subclass breaks one clause of it."""

    joint, fit = 5, "squash"

    def __init__(self, folder=None):
        super().__init__()
        torch.manual_seed(0)
        self.dim, self.grid, self.image_size = 6, (2, 2), SIDE
        self.layer, self.project = nn.Linear(48, 6), nn.Linear(6, 5)
        if folder:
            self.load_state_dict(load_file(folder / "weights.safetensors"))

    def pixels(self, image, scale=1):
        side = SIDE * scale
        bytes_ = torch.frombuffer(bytearray(image.convert("RGB").resize((side, side)).tobytes()), dtype=torch.uint8)
        return bytes_.reshape(side, side, 3).permute(2, 0, 1) / 255

    def frame(self, size):
        return Frame(self.fit, size, self.grid)

    def forward(self, pixels_B3SS):
        check_pixels(pixels_B3SS, SIDE, "plain")
        cut = F.unfold(pixels_B3SS.to(self.layer.weight.dtype), 4, stride=4)
        return self.layer(cut.transpose(1, 2))

    def both(self, pixels_B3SS):
        patches = self(pixels_B3SS)
        return patches, self.project(patches)

    def checkpoint_activations(self):
        pass

    def words(self, texts):
        length = torch.tensor([[float(len(text))] for text in texts])
        return F.normalize(torch.cat([length.expand(-1, self.joint - 1), torch.ones_like(length)], -1), dim=-1)

    def identity(self):
        return "plain"

    def save(self, folder, state=None):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(self.state_dict() if state is None else state), folder / "weights.safetensors")


class Scalar(Plain):
    def __init__(self, folder=None):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))


class Nameless(Plain):
    def identity(self):
        return ""


class Renamed(Plain):
    def identity(self):
        return str(id(self))


class SmallPixels(Plain):
    def pixels(self, image, scale=1):
        return super().pixels(image, scale)[:, :5]


class BytePixels(Plain):
    def pixels(self, image, scale=1):
        return (super().pixels(image, scale) * 255).byte()


class NoPixels(Plain):
    def pixels(self, image, scale=1):
        return super().pixels(image, scale) / 0


class OneScale(Plain):
    def pixels(self, image, scale=1):
        return super().pixels(image)


class ClassToken(Plain):
    def forward(self, pixels_B3SS):
        patches = super().forward(pixels_B3SS)
        return torch.cat([patches[:, :1], patches], 1)


class NoGradient(Plain):
    @torch.no_grad()
    def both(self, pixels_B3SS):
        return super().both(pixels_B3SS)

    def forward(self, pixels_B3SS):
        return super().forward(pixels_B3SS).detach().requires_grad_(True)


class OtherPatches(Plain):
    def both(self, pixels_B3SS):
        patches, dense = super().both(pixels_B3SS)
        return patches + 1, dense


class WideDense(Plain):
    joint = 4


class LongWords(Plain):
    def words(self, texts):
        return super().words(texts) * 2


class Neighbours(Plain):
    def words(self, texts):
        return F.normalize(super().words(texts) + len(texts) * torch.eye(5)[0], dim=-1)


class Silent(Plain):
    joint = 0


class AnySize(Plain):
    def both(self, pixels_B3SS):
        return super().both(pixels_B3SS[..., :SIDE, :SIDE])


class OneReader(Plain):
    def pixels(self, image, scale=1):
        self.image = image
        time.sleep(0.001)
        return super().pixels(self.image, scale)


class Unwritten(Plain):
    checkpoint_activations = Vision.checkpoint_activations


class Recomputed(Plain):
    def checkpoint_activations(self):
        self.layer.weight.data *= 2


class Forgetful(Plain):
    def save(self, folder, state=None):
        super().save(folder, {name: torch.zeros_like(value) for name, value in self.state_dict().items()})


class Stubborn(Plain):
    def save(self, folder, state=None):
        super().save(folder)


class Unplaced(Plain):
    frame = Vision.frame


class OtherGrid(Plain):
    def frame(self, size):
        return Frame(self.fit, size, (3, 2))


class OtherFit(Plain):
    fit = "crop"

    def frame(self, size):
        return Frame("squash", size, self.grid)


class OtherSize(Plain):
    def frame(self, size):
        return Frame(self.fit, size[::-1], self.grid)


class SaysCropped(Plain):
    fit = "crop"

    def frame(self, size):
        return placed("crop", size, self.grid, SIDE)


class SaysPadded(Plain):
    fit = "pad"

    def frame(self, size):
        return placed("pad", size, self.grid, SIDE)


class Padded(SaysPadded):
    """4 x 4 patches of 2 pixels, so that some are padding."""

    def __init__(self, folder=None):
        super().__init__()
        self.grid, self.layer = (4, 4), nn.Linear(12, 6)
        if folder:
            self.load_state_dict(load_file(folder / "weights.safetensors"))

    def pixels(self, image, scale=1):
        return super().pixels(square(image.convert("RGB"), (0.5, 0.5, 0.5)), scale)

    def forward(self, pixels_B3SS):
        check_pixels(pixels_B3SS, SIDE, "plain")
        return self.layer(F.unfold(pixels_B3SS.to(self.layer.weight.dtype), 2, stride=2).transpose(1, 2))


class SaysSquashed(Padded):
    fit = "squash"

    def frame(self, size):
        return Frame("squash", size, self.grid)


class UpsideDown(Padded):
    def frame(self, size):
        x0, y0, x1, y1 = super().frame(size).region
        return Frame(self.fit, size, self.grid, (x0, y1, x1, y0))


class HalfAPatchOff(Padded):
    def frame(self, size):
        x0, y0, x1, y1 = super().frame(size).region
        off = (x1 - x0) / 8
        return Frame(self.fit, size, self.grid, (x0 + off, y0, x1 + off, y1))


BROKEN = {
    OtherGrid: r"the grid of the frame of a 96 x 96 picture is \(3, 2\), not \(2, 2\)",
    OtherFit: "the fit of the frame of a 96 x 96 picture is squash, not crop",
    OtherSize: r"the size of the frame of a 96 x 72 picture is \(72, 96\), not \(96, 72\)",
    SaysCropped: r"patch 0 of a 160 x 40 picture shows \(0\.44, 0\.25\), and its pixels \(0\.25, 0\.25\)",
    SaysPadded: r"patch 0 of a 160 x 40 picture shows \(0\.25, -0\.50\), which is outside, and its pixels show",
    SaysSquashed: r"patch 0 of a 96 x 72 picture shows \(0\.12, 0\.12\), and its pixels show no picture",
    UpsideDown: "frame\\(\\) is wrong: patch 0",
    HalfAPatchOff: "frame\\(\\) is wrong: patch",
    Scalar: "parameters without a dimension, .*: scale",
    Nameless: r"identity\(\) is empty",
    Renamed: "two encoders built alike have different identities",
    SmallPixels: r"pixels of a 40 x 30 RGB image are \(3, 5, 8\), not \(3, 8, 8\)",
    BytePixels: "pixels are torch.uint8, not fp32",
    NoPixels: "pixels of a RGB image are not finite",
    OneScale: r"pixels at scale 2 are \(3, 8, 8\)",
    ClassToken: r"the output is \(3, 5, 6\), declared was \(3, 4, 6\)",
    NoGradient: "no gradient reaches the encoder",
    OtherPatches: r"both\(\) and forward\(\) give other patches",
    WideDense: r"the output is \(2, 4, 5\), declared was \(2, 4, 4\)",
    LongWords: r"words\(\) gives no unit vectors",
    Neighbours: "a word depends on its neighbours",
    AnySize: r"both\(\) on images of another size raises no CardError",
    OneReader: "threads that read at once get other pixels",
    Unwritten: r"checkpoint_activations\(\) is not written",
    Recomputed: r"checkpoint_activations\(\) changes what is learned",
    Silent: r"joint is 0, but both\(\) raises no CardError",
    Forgetful: "a saved encoder differs",
    Stubborn: "an encoder saved with trained weights differs",
}


@pytest.mark.parametrize("vision", [Plain, Padded])
def test_the_unbroken_encoder_passes(tmp_path, vision):
    check_vision(vision, tmp_path, vision)


def test_an_encoder_without_a_frame_says_what_to_write(tmp_path):
    with pytest.raises(CardError, match="Unplaced does not say where its patches lie in a picture") as caught:
        check_vision(Unplaced, tmp_path, Unplaced)
    assert caught.value.at == "tests.vision.test_vision_contract.Unplaced"
    assert caught.value.fix.startswith("def frame(self, size): return Frame(")


@pytest.mark.parametrize("vision", BROKEN, ids=lambda vision: vision.__name__)
def test_what_breaks_the_contract_is_said(vision, tmp_path):
    with pytest.raises(AssertionError, match=BROKEN[vision]):
        check_vision(vision, tmp_path, vision)


def test_without_a_text_tower_both_and_words_say_so():
    class Mute(Plain):
        joint = 0
        both, words = Vision.both, Vision.words

    for call in (lambda: Mute().both(torch.zeros(1, 3, SIDE, SIDE)), lambda: Mute().words(["dog"])):
        with pytest.raises(CardError, match="plain has no text tower") as caught:
            call()
        assert caught.value.fix == no_text("").fix


@pytest.mark.parametrize(("layer", "expected"), [(-1, 24), (-2, 23), (1, 1), (24, 24), (-24, 1)])
def test_layers_count_like_hidden_states(layer, expected):
    assert depth(layer, 24, "x") == expected
