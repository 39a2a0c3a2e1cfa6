"""MLP adapters are LLaVA-1.5's; identity is none."""

import pytest
import torch
from torch.nn import functional as F

from mmalign.adapters.mlp import MLP, Identity
from mmalign.errors import CheckError


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_linear_layers_with_a_gelu_between(depth):
    adapter = MLP(8, 12, (2, 2), depth)
    patches = torch.randn(2, 4, 8)
    weights = [(p.weight, p.bias) for p in adapter.layers if hasattr(p, "weight")]
    assert len(weights) == depth
    expected = F.linear(patches, *weights[0])
    for weight, bias in weights[1:]:
        expected = F.linear(F.gelu(expected), weight, bias)
    assert torch.allclose(adapter(patches), expected)


def test_at_least_one_layer():
    with pytest.raises(CheckError, match="needs at least one layer, got depth 0"):
        MLP(8, 12, (2, 2), 0)


def test_identity_keeps_the_width():
    patches = torch.randn(2, 4, 8)
    assert Identity(8, 8, (2, 2))(patches) is patches
    with pytest.raises(CheckError, match="patches are 8 wide, the language model 12") as caught:
        Identity(8, 12, (2, 2))
    assert "mlp2x-gelu" in caught.value.fix
