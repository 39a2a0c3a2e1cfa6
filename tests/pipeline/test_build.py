"""Models in the precision of a stage."""

import torch
from torch import nn

from mmalign.pipeline import build


def eight_bits():
    """A linear layer as transformers holds one of a checkpoint in 8-bit floats: what they mean is in a scale."""
    linear = nn.Linear(4, 4, bias=False)
    linear.weight = nn.Parameter(linear.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    linear.weight_scale_inv = nn.Parameter(torch.full((1,), 0.3))
    return nn.Sequential(linear)


def test_a_quantised_model_stays_as_it_is():
    quantised = eight_bits()
    quantised.hf_quantizer = object()
    whole = nn.ModuleDict({"adapter": nn.Linear(4, 4), "llm": nn.Sequential(quantised)})
    build.cast_all("bf16", whole, None)
    assert whole["adapter"].weight.dtype == torch.bfloat16
    assert quantised[0].weight.dtype == torch.float8_e4m3fn
    assert quantised[0].weight_scale_inv.dtype == torch.float32
    build.cast_all("bf16", quantised)
    assert quantised[0].weight.dtype == torch.float8_e4m3fn
    plain = eight_bits()
    build.cast_all("bf16", plain)
    assert plain[0].weight.dtype == torch.bfloat16
