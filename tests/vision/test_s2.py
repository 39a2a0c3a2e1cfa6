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
    base, side = vision.encoder, vision.encoder.image_size
    rows, columns = base.grid
    found = torch.zeros(len(pixels_B3SS), rows * columns, vision.dim)
    for image, pixels_3SS in enumerate(pixels_B3SS):
        for number, scale in enumerate(vision.scales):
            size = (side * scale, side * scale)
            copy = F.interpolate(pixels_3SS[None], size, mode="bicubic", antialias=True)
            map_ = torch.zeros(scale * rows, scale * columns, base.dim)
            for down in range(scale):
                for right in range(scale):
                    tile = copy[..., down * side : (down + 1) * side, right * side : (right + 1) * side]
                    seen = base(tile)[0].reshape(rows, columns, -1)
                    map_[down * rows : (down + 1) * rows, right * columns : (right + 1) * columns] = seen
            for row in range(rows):
                for column in range(columns):
                    under = map_[row * scale : (row + 1) * scale, column * scale : (column + 1) * scale]
                    channels = slice(number * base.dim, (number + 1) * base.dim)
                    found[image, row * columns + column, channels] = under.mean((0, 1))
    return found


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_contract(kind, folders, tmp_path):
    check_vision(lambda: S2(encoder(folders[kind])), tmp_path, lambda folder: S2(encoder(folder)))


@pytest.mark.parametrize("scales", [(1,), (1, 2), (1, 2, 3), (1, 3)])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.no_grad()
def test_patches_are_the_definition(kind, scales, folders):
    vision = S2(encoder(folders[kind]), scales).eval()
    given = pixels(vision)
    assert given.shape[-1] == vision.image_size == scales[-1] * vision.encoder.image_size
    assert torch.allclose(vision(given), by_loops(vision, given), atol=1e-5)


@torch.no_grad()
def test_bf16(folders):
    vision = S2(encoder(folders["clip"])).eval()
    given = pixels(vision)
    expected = by_loops(vision, given)
    found = vision.bfloat16()(given)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


@torch.no_grad()
def test_grids_that_are_not_square():
    class Wide(torch.nn.Module):
        """5 x 3 patches; each has the mean of its pixels, its row and its column."""

        dim, grid, image_size, joint = 3, (5, 3), 15, 0

        def forward(self, pixels_B3SS):
            mean = F.adaptive_avg_pool2d(pixels_B3SS, self.grid).mean(1)
            row = torch.arange(5.0)[:, None].expand_as(mean)
            column = torch.arange(3.0).expand_as(mean)
            return torch.stack([mean, row, column], -1).flatten(1, 2)

    vision = S2(Wide(), (1, 2, 3))
    given = torch.randn(2, 3, 45, 45)
    assert torch.allclose(vision(given), by_loops(vision, given), atol=1e-5)


@torch.no_grad()
def test_labels_come_from_the_encoders_own_view(folders):
    vision = S2(encoder(folders["clip"])).eval()
    given = pixels(vision)
    patches_BPC, dense_BPJ = vision.both(given)
    small = F.interpolate(given, (30, 30), mode="bicubic", antialias=True)
    assert torch.allclose(dense_BPJ, vision.encoder.both(small)[1], atol=1e-6)
    assert torch.allclose(patches_BPC, vision(given), atol=1e-5)
    assert torch.equal(vision.words(["dog"]), vision.encoder.words(["dog"]))
    one = S2(encoder(folders["clip"]), [1]).eval()
    assert torch.equal(one.both(small)[0], one.encoder(small))


@torch.no_grad()
def test_the_own_view_is_the_encoders(folders):
    """The smaller copy is made from the larger one; it is nearly what the processor makes from the image."""
    vision = S2(encoder(folders["clip"])).eval()
    image = picture(200, 200).resize((600, 600))
    ours = vision.tiles(vision.pixels(image)[None], 1)[0]
    assert (ours - vision.encoder.pixels(image)).abs().mean() < 0.05


def test_gradients_reach_the_encoder(folders):
    vision = S2(encoder(folders["clip"])).train()
    given = pixels(vision, 1)
    grads = []
    for forward in (lambda: vision(given), lambda: by_loops(vision, given)):
        vision.zero_grad()
        forward().square().sum().backward()
        grads.append({n: p.grad.clone() for n, p in vision.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert any("patch_embedding" in name for name in grads[0])
    assert all(torch.allclose(grads[0][n], grads[1][n], rtol=1e-3, atol=1e-3) for n in grads[0])


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
