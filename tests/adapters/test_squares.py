"""Squares of neighbouring patches, against loops."""

import pytest
import torch

from mmalign.adapters.squares import AveragePool, LDPv2, PixelShuffle
from mmalign.errors import CheckError

GRIDS = [((6, 4), 2), ((5, 3), 1), ((27, 27), 3), ((9, 6), 3), ((4, 4), 4)]


def squares(patches, grid, factor):
    """The patches of every square, row by row."""
    rows, columns = grid
    for image in patches:
        map_ = image.reshape(rows, columns, -1)
        yield [
            [map_[y + down, x + right] for down in range(factor) for right in range(factor)]
            for y in range(0, rows, factor)
            for x in range(0, columns, factor)
        ]


@pytest.mark.parametrize(("grid", "factor"), GRIDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_average_pool(grid, factor, dtype, tolerance):
    adapter = AveragePool(8, 12, grid, factor).to(dtype)
    patches = torch.randn(2, grid[0] * grid[1], 8).to(dtype)
    for image, expected in zip(adapter(patches), squares(patches, grid, factor), strict=True):
        assert len(image) == len(expected) == adapter.tokens
        for token, square in zip(image, expected, strict=True):
            assert torch.allclose(token, adapter.layers(torch.stack(square).mean(0)), atol=tolerance)


@pytest.mark.parametrize(("grid", "factor"), GRIDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_pixel_shuffle(grid, factor, dtype, tolerance):
    adapter = PixelShuffle(8, 12, grid, factor).to(dtype)
    patches = torch.randn(2, grid[0] * grid[1], 8).to(dtype)
    for image, expected in zip(adapter(patches), squares(patches, grid, factor), strict=True):
        for token, square in zip(image, expected, strict=True):
            assert torch.allclose(token, adapter.layers(adapter.norm(torch.cat(square))), atol=tolerance)


@pytest.mark.parametrize(("grid", "factor"), GRIDS)
def test_ldp_v2(grid, factor):
    adapter = LDPv2(8, 12, grid, factor)
    patches = torch.randn(2, grid[0] * grid[1], 8)
    rows, columns = grid[0] // factor, grid[1] // factor
    for image, expected in zip(adapter(patches), squares(adapter.layers(patches), grid, factor), strict=True):
        mean = torch.stack([torch.stack(square).mean(0) for square in expected]).reshape(rows, columns, 12)
        for y in range(rows):
            for x in range(columns):
                seen = mean[y, x] + adapter.place.bias
                for down in (-1, 0, 1):
                    for right in (-1, 0, 1):
                        if 0 <= y + down < rows and 0 <= x + right < columns:
                            seen = seen + mean[y + down, x + right] * adapter.place.weight[:, 0, down + 1, right + 1]
                assert torch.allclose(image[y * columns + x], seen, atol=1e-5)


@pytest.mark.parametrize("adapter", [AveragePool, PixelShuffle, LDPv2])
@pytest.mark.parametrize(("grid", "factor"), [((27, 27), 2), ((4, 5), 2), ((5, 4), 2), ((4, 4), 0)])
def test_ragged_grids_are_refused(adapter, grid, factor):
    with pytest.raises(CheckError, match=f"a grid of {grid[0]} x {grid[1]} patches has no squares of") as caught:
        adapter(8, 12, grid, factor)
    assert caught.value.at == "args.factor"
