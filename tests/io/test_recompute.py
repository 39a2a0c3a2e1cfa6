"""Activations made again in the backward pass: the same gradients, and of every layer, be its model frozen or not."""

import pytest
import torch

from mmalign.io import pretrained
from mmalign.llms.causal import CausalLM
from tests import parts

MODES = {"frozen, in eval mode": False, "in training": True}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return {family: str(parts.llm(family, tmp_path_factory.mktemp(family))) for family in ("llama", "gemma", "phi")}


def gradient(lm, calls, dtype=torch.float32):
    """Of the sum of squares of what it makes of embeddings; calls: how often each layer's attention was computed."""
    torch.manual_seed(1)
    given = torch.randn(2, 7, lm.config.hidden_size, dtype=dtype, requires_grad=True)
    calls.clear()
    lm(inputs_embeds=given, use_cache=False).logits.float().square().sum().backward()
    return given.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["llama", "gemma", "phi"])
def test_every_layer_is_computed_again(places, family, mode, dtype):
    lm = CausalLM(places[family]).lm.to(dtype).train(MODES[mode]).requires_grad_(MODES[mode])
    calls = []
    for layer in lm.base_model.layers:
        layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    layers = len(lm.base_model.layers)
    plain = gradient(lm, calls, dtype)
    assert len(calls) == layers
    for _ in range(2):  # asked for again, nothing is wrapped twice
        pretrained.recompute(lm)
        assert torch.equal(gradient(lm, calls, dtype), plain)
        assert len(calls) == 2 * layers
    with torch.no_grad():
        calls.clear()
        lm(inputs_embeds=torch.zeros(1, 3, lm.config.hidden_size, dtype=dtype))
        assert len(calls) == layers
    pretrained.recompute(lm, on=False)
    assert torch.equal(gradient(lm, calls, dtype), plain)
    assert len(calls) == layers


def test_answers_are_as_before(places):
    """A cache is filled once: a model that recomputes answers as it did."""
    lm = CausalLM(places["llama"]).lm.eval()
    ids = torch.arange(5)[None]
    how = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    before = lm.generate(ids, **how)
    pretrained.recompute(lm)
    assert torch.equal(lm.generate(ids, **how), before)
    with torch.enable_grad():
        first = lm(ids, use_cache=True)
        second = lm(torch.tensor([[7]]), past_key_values=first.past_key_values)
    whole = lm(torch.cat([ids, torch.tensor([[7]])], dim=1))
    assert torch.allclose(second.logits[:, -1], whole.logits[:, -1], atol=1e-5)
