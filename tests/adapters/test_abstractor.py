"""The C-Abstractor's parts: pooling equals torch's, tokens keep their places, blocks have the paper's shape."""

import pytest
import torch
from torch.nn import functional as F

from mmalign.adapters.abstractor import Block, CAbstractor, pooled
from mmalign.errors import CheckError


@pytest.mark.parametrize("come", [(24, 24), (27, 27), (5, 3), (1, 7)])
@pytest.mark.parametrize("side", [1, 2, 3, 5, 12])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_pooling_is_adaptive_average_pooling(come, side, dtype, tolerance):
    given = torch.randn(2, 3, *come).to(dtype)
    found = pooled(given, side)
    assert found.dtype == dtype
    assert torch.allclose(found.float(), F.adaptive_avg_pool2d(given.float(), side), atol=tolerance)


def test_a_block_is_a_bottleneck_with_excitation():
    block = Block(8, 16).eval()
    given = torch.randn(2, 8, 5, 3)
    seen = block.look(block.narrow(given))
    for image in range(2):
        gate = torch.sigmoid(block.excite[2](F.relu(block.excite[0](seen[image].mean((1, 2))[None, :, None, None]))))
        out = F.silu(block.wide(seen[image : image + 1] * gate) + block.short(given[image : image + 1]))
        assert torch.allclose(block(given)[image], out[0], atol=1e-6)
    norm = block.narrow[1]
    map_ = torch.randn(1, 16, 2, 2)
    by_hand = torch.stack([F.layer_norm(map_[0, :, y, x], (16,)) for y in range(2) for x in range(2)], -1)
    assert torch.allclose(norm(map_)[0].flatten(1), by_hand, atol=1e-6)
    assert len(Block(16, 16).short) == 0  # the same width: nothing on the short way


def test_tokens_are_rows_of_the_pooled_map():
    """Without blocks it is places, pooling and the readout."""
    adapter = CAbstractor(8, 12, (5, 3), tokens=4, width=16, depth=0)
    patches = torch.randn(2, 15, 8)
    map_ = (patches + adapter.place_PC).transpose(1, 2).reshape(2, 8, 5, 3)
    expected = adapter.readout(F.adaptive_avg_pool2d(map_, 2).flatten(2).transpose(1, 2))
    assert torch.allclose(adapter(patches), expected, atol=1e-6)


@pytest.mark.parametrize("tokens", [0, -4, 2, 143])
def test_tokens_are_a_square(tokens):
    with pytest.raises(CheckError, match=f"tokens must be a square number, got {tokens}"):
        CAbstractor(8, 12, (4, 4), tokens=tokens)


def test_width_has_whole_groups():
    with pytest.raises(CheckError, match="width must be a multiple of 8, got 12"):
        CAbstractor(8, 12, (4, 4), tokens=4, width=12)
