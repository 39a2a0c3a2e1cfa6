"""The Perceiver resampler and the Q-Former against their definitions, head by head."""

import pytest
import torch
from torch.nn import functional as F

from mmalign.adapters.queries import Attention, QFormer, Resampler
from mmalign.errors import CheckError


def by_loops(attention, query, key):
    """Softmax of scaled products, one head and one query at a time."""
    q, k, v = attention.query(query), attention.key(key), attention.value(key)
    size = q.shape[-1] // attention.heads
    seen = torch.zeros_like(q)
    for image in range(len(q)):
        for head in range(attention.heads):
            part = slice(head * size, (head + 1) * size)
            for number in range(q.shape[1]):
                weight = F.softmax(k[image, :, part] @ q[image, number, part] / size**0.5, dim=0)
                seen[image, number, part] = weight @ v[image, :, part]
    return attention.out(seen)


@pytest.mark.parametrize("bias", [False, True])
def test_attention(bias):
    attention = Attention(12, 8, heads=3, bias=bias)
    query, key = torch.randn(2, 5, 12), torch.randn(2, 7, 8)
    assert torch.allclose(attention(query, key), by_loops(attention, query, key), atol=1e-6)


@pytest.mark.parametrize("width", [None, 12])
def test_resampler_latents_attend_to_patches_and_themselves(width):
    adapter = Resampler(8, 10, (3, 2), tokens=4, width=width, depth=2, heads=2)
    patches = torch.randn(2, 6, 8)
    seen, latent = adapter.come(patches), adapter.query_QM.repeat(2, 1, 1)
    for layer in adapter.layers:
        normed = layer.norm_latents(latent)
        keys = torch.cat([layer.norm_patches(seen), normed], 1)
        latent = latent + by_loops(layer.attend, normed, keys)
        norm, up, _, down = layer.feed
        latent = latent + down(F.relu(up(norm(latent))) ** 2)
    assert torch.allclose(adapter(patches), adapter.out(adapter.norm(latent)), atol=1e-5)
    assert not any("bias" in name for name, _ in adapter.layers[0].attend.named_parameters())


@pytest.mark.parametrize(("depth", "every"), [(3, 2), (2, 1), (4, 3)])
def test_q_former_queries_see_each_other_and_in_some_layers_the_patches(depth, every):
    adapter = QFormer(8, 10, (3, 2), tokens=4, width=12, depth=depth, heads=3, every=every)
    patches = torch.randn(2, 6, 8)
    query = adapter.query_QM.repeat(2, 1, 1)
    for number, layer in enumerate(adapter.layers):
        normed = layer.norm_own(query)
        query = query + by_loops(layer.own, normed, normed)
        if number % every == 0:
            query = query + by_loops(layer.cross, layer.norm_cross(query), patches)
        else:
            assert layer.cross is None
        query = query + layer.feed(query)
    assert torch.allclose(adapter(patches), adapter.out(adapter.norm(query)), atol=1e-5)


@pytest.mark.parametrize("adapter", [Resampler, QFormer])
def test_settings_that_cannot_be(adapter):
    with pytest.raises(CheckError, match="5 heads do not divide a width of 32") as caught:
        adapter(8, 10, (3, 2), width=32, heads=5)
    assert caught.value.at == "args.heads"
    for name in ("tokens", "depth"):
        with pytest.raises(CheckError, match=f"{name} must be at least 1, got 0"):
            adapter(8, 10, (3, 2), width=32, heads=4, **{name: 0})


def test_patches_are_seen_at_least_once():
    with pytest.raises(CheckError, match="n at least 1, got 0"):
        QFormer(8, 10, (3, 2), width=32, heads=4, every=0)
