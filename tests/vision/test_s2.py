"""S2 equals its definition in loops: scales, tiles, one map, average back, side by side."""

import pytest
import torch
from torch.nn import functional as F

from mmalign.errors import CardError
from mmalign.testing import check_vision
from mmalign.vision.s2 import S2
from tests.vision.tiny import encoder, picture, pixels


def by_loops(vision, pixels_B3SS):
    """The definition, one tile and one patch at a time."""
    inner, side = vision.encoder, vision.encoder.image_size
    rows, columns = inner.grid
    patches_BPC = torch.zeros(len(pixels_B3SS), rows * columns, vision.dim)
    for image, pixels_3SS in enumerate(pixels_B3SS):
        for number, scale in enumerate(vision.scales):
            size = (side * scale, side * scale)
            scaled = F.interpolate(pixels_3SS[None], size, mode="bicubic", antialias=True)
            map_ = torch.zeros(scale * rows, scale * columns, inner.dim)
            for down in range(scale):
                for right in range(scale):
                    tile = scaled[..., down * side : (down + 1) * side, right * side : (right + 1) * side]
                    patches_HWC = inner(tile)[0].reshape(rows, columns, -1)
                    map_[down * rows : (down + 1) * rows, right * columns : (right + 1) * columns] = patches_HWC
            for row in range(rows):
                for column in range(columns):
                    covered = map_[row * scale : (row + 1) * scale, column * scale : (column + 1) * scale]
                    channels = slice(number * inner.dim, (number + 1) * inner.dim)
                    patches_BPC[image, row * columns + column, channels] = covered.mean((0, 1))
    return patches_BPC


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_contract(kind, folders, tmp_path):
    check_vision(lambda: S2(encoder(folders[kind])), tmp_path, lambda folder: S2(encoder(folder)))


@pytest.mark.parametrize("scales", [(1,), (1, 2), (1, 2, 3), (1, 3)])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.no_grad()
def test_patches_are_the_definition(kind, scales, folders):
    vision = S2(encoder(folders[kind]), scales).eval()
    pixels_B3SS = pixels(vision)
    assert pixels_B3SS.shape[-1] == vision.image_size == scales[-1] * vision.encoder.image_size
    assert torch.allclose(vision(pixels_B3SS), by_loops(vision, pixels_B3SS), atol=1e-5)


@torch.no_grad()
def test_bf16(folders):
    vision = S2(encoder(folders["clip"])).eval()
    pixels_B3SS = pixels(vision)
    expected = by_loops(vision, pixels_B3SS)
    patches_BPC = vision.bfloat16()(pixels_B3SS)
    assert patches_BPC.dtype == torch.bfloat16
    assert (patches_BPC - expected).abs().max() < 0.05 * expected.abs().max()


@torch.no_grad()
def test_grids_that_are_not_square():
    class Wide(torch.nn.Module):
        """5 x 3 patches; each has the mean of its pixels, its row and its column."""

        dim, grid, image_size, joint, fit = 3, (5, 3), 15, 0, "squash"

        def forward(self, pixels_B3SS):
            mean = F.adaptive_avg_pool2d(pixels_B3SS, self.grid).mean(1)
            row = torch.arange(5.0)[:, None].expand_as(mean)
            column = torch.arange(3.0).expand_as(mean)
            return torch.stack([mean, row, column], -1).flatten(1, 2)

    vision = S2(Wide(), (1, 2, 3))
    pixels_B3SS = torch.randn(2, 3, 45, 45)
    assert torch.allclose(vision(pixels_B3SS), by_loops(vision, pixels_B3SS), atol=1e-5)


@torch.no_grad()
def test_labels_come_from_the_encoders_own_view(folders):
    vision = S2(encoder(folders["clip"])).eval()
    pixels_B3SS = pixels(vision)
    patches_BPC, dense_BPJ = vision.both(pixels_B3SS)
    small = F.interpolate(pixels_B3SS, (30, 30), mode="bicubic", antialias=True)
    assert torch.allclose(dense_BPJ, vision.encoder.both(small)[1], atol=1e-6)
    assert torch.allclose(patches_BPC, vision(pixels_B3SS), atol=1e-5)
    assert torch.equal(vision.words(["dog"]), vision.encoder.words(["dog"]))
    single = S2(encoder(folders["clip"]), [1]).eval()
    assert torch.equal(single.both(small)[0], single.encoder(small))


@torch.no_grad()
def test_the_own_view_is_the_encoders(folders):
    """The smaller copy is made from the larger one; it is nearly what the processor makes from the image."""
    vision = S2(encoder(folders["clip"])).eval()
    image = picture(200, 200).resize((600, 600))
    ours = vision.tiles(vision.pixels(image)[None], 1)[0]
    assert (ours - vision.encoder.pixels(image)).abs().mean() < 0.05


def test_gradients_reach_the_encoder(folders):
    vision = S2(encoder(folders["clip"])).train()
    pixels_B3SS = pixels(vision, 1)
    grads = []
    for forward in (lambda: vision(pixels_B3SS), lambda: by_loops(vision, pixels_B3SS)):
        vision.zero_grad()
        forward().square().sum().backward()
        grads.append({n: p.grad.clone() for n, p in vision.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert any("patch_embedding" in name for name in grads[0])
    assert all(torch.allclose(grads[0][n], grads[1][n], rtol=1e-3, atol=1e-3) for n in grads[0])


def test_layers_that_the_encoder_freezes_stay(folders):
    vision = S2(encoder(folders["clip"], frozen=1))
    vision.requires_grad_(True)
    learning = [p.requires_grad for p in vision.parameters()]
    assert any(learning)
    assert not all(learning)
    assert not any(p.requires_grad for p in vision.encoder.tower.embeddings.parameters())
    assert not any(p.requires_grad for p in vision.requires_grad_(False).parameters())


def test_activations_are_checkpointed_in_the_encoder(folders):
    vision = S2(encoder(folders["clip"]))
    vision.checkpoint_activations()
    assert vision.encoder._layers()[0].gradient_checkpointing


def test_identity_tells_the_scales(folders):
    base = encoder(folders["clip"])
    assert len({base.identity(), S2(base).identity(), S2(base, (1, 2)).identity()}) == 3


@pytest.mark.parametrize("scales", [(2, 3), (1, 1), (3, 1), (0, 1), (1, 1.5, 1)])
def test_scales_begin_with_the_encoders_own(scales, folders):
    with pytest.raises(CardError, match="scales are 1 and larger whole numbers, in order, not") as caught:
        S2(encoder(folders["clip"]), scales)
    assert caught.value.fix == "scales: [1, 2, 3]"


def test_wrong_size(folders):
    vision = S2(encoder(folders["clip"]))
    with pytest.raises(CardError, match="S2 takes images of 90 x 90 pixels, got 30 x 30"):
        vision(torch.zeros(1, 3, 30, 30))
