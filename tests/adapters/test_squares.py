"""Squares of neighbouring patches, against loops."""

from functools import partial

import pytest
import torch
from torch import nn

from mmalign.adapters.abstractor import ChannelNorm
from mmalign.adapters.squares import LDP, AveragePool, DepthwiseBlock, LDPv2, PixelShuffle
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


def blocked(block, map_, step):
    """A depthwise block by loops, {(row, column): D channels}, over every `step`-th place."""
    depthwise, norm, swish, excite, pointwise, last = block
    rows, columns, _ = map_.shape
    seen = {}
    for y in range(0, rows, step):
        for x in range(0, columns, step):
            total = torch.zeros_like(map_[y, x])
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    if 0 <= y + down < rows and 0 <= x + right < columns:
                        total = total + map_[y + down, x + right] * depthwise.weight[:, 0, down + 1, right + 1]
            seen[y // step, x // step] = swish(norm_of(norm, total))
    narrow, relu, wide, sigmoid = excite.scale
    mean = torch.stack([*seen.values()]).mean(0)
    scale = sigmoid(wide.weight[:, :, 0, 0] @ relu(narrow.weight[:, :, 0, 0] @ mean + narrow.bias) + wide.bias)
    return {place: norm_of(last, pointwise.weight[:, :, 0, 0] @ (token * scale)) for place, token in seen.items()}


def norm_of(norm, token):
    return (token - token.mean()) / (token.var(unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias


@pytest.mark.parametrize(("grid", "factor"), [((6, 4), 2), ((5, 3), 1), ((9, 6), 3), ((4, 4), 4)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_ldp(grid, factor, dtype, tolerance):
    adapter = LDP(8, 12, grid, factor).to(dtype)
    for parameter in adapter.parameters():  # norms too
        nn.init.normal_(parameter, std=0.5)
    patches = torch.randn(2, grid[0] * grid[1], 8, dtype=dtype)
    for image, tokens in zip(adapter(patches), adapter.layers(patches), strict=True):
        map_ = tokens.reshape(*grid, 12)
        kept = map_ + torch.stack([*blocked(adapter.keep, map_, 1).values()]).reshape(*grid, 12)
        expected = blocked(adapter.step, kept, factor)
        assert len(image) == len(expected) == adapter.tokens
        for (y, x), token in expected.items():
            assert torch.allclose(image[y * (grid[1] // factor) + x], token, atol=tolerance)


@pytest.mark.parametrize("wide", [8, 48, 2048, 2560, 4096])
@pytest.mark.parametrize("step", [1, 2])
def test_ldps_blocks_are_mobilenets(wide, step):
    """Those of MobileVLM's code: torchvision's, with layer norms and a hard sigmoid; weight by weight."""
    mobilenet = pytest.importorskip("torchvision.models.mobilenetv3")
    excitation = partial(pytest.importorskip("torchvision.ops.misc").SqueezeExcitation, scale_activation=nn.Hardsigmoid)
    config = mobilenet.InvertedResidualConfig(wide, 3, wide, wide, True, "HS", step, 1, 1)
    with torch.device("cpu" if wide < 100 else "meta"):
        theirs = mobilenet.InvertedResidual(config, ChannelNorm, excitation)
        ours = DepthwiseBlock(wide, step)
    shapes = [[tuple(p.shape) for p in block.parameters()] for block in (ours, theirs)]
    assert shapes[0] == shapes[1]
    if wide < 100:
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.data = mine.data
        map_ = torch.randn(2, wide, 6, 4)
        assert torch.allclose(ours(map_) + (map_ if step == 1 else 0), theirs(map_), atol=1e-6)


@pytest.mark.parametrize("adapter", [AveragePool, PixelShuffle, LDP, LDPv2])
@pytest.mark.parametrize(("grid", "factor"), [((27, 27), 2), ((4, 5), 2), ((5, 4), 2), ((4, 4), 0)])
def test_ragged_grids_are_refused(adapter, grid, factor):
    with pytest.raises(CheckError, match=f"a grid of {grid[0]} x {grid[1]} patches has no squares of") as caught:
        adapter(8, 12, grid, factor)
    assert caught.value.at == "args.factor"
