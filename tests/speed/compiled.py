"""Forward and backward of a frozen language model's layers that torch compiled (`engine: {compile: true}`), against the
same layers as they are: 4 layers, 256 wide, two samples of other lengths a call; fp32. Without a C++ compiler, no row.
"""

import shutil
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaModel

from mmalign.io.pretrained import compile_layers

from . import Pairs, in_turn
from ._work import clock

TARGET = 1.0
TIMES = 9
LENGTHS = (301, 256, 330)


def measure() -> dict[str, Pairs]:
    if not torch.cuda.is_available() and shutil.which("g++") is None:
        return {}
    torch.set_num_threads(1)
    ours, plain = _model(), _model()
    compile_layers(ours.layers, torch.compile, torch.is_grad_enabled)
    return {"compiled layers / as they are": in_turn(_calls(ours), _calls(plain), TIMES, clock)}


def _model() -> LlamaModel:
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
                         num_key_value_heads=4, vocab_size=32, max_position_embeddings=512)  # fmt: skip
    model = LlamaModel(config).train().requires_grad_(False)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _calls(model: LlamaModel) -> Callable[[], None]:
    g = torch.Generator().manual_seed(0)
    passes = [torch.randn(2, length, 256, generator=g).to(model.device) for length in LENGTHS]

    def call() -> None:
        for embeds_BSD in passes:
            out = model(inputs_embeds=embeds_BSD.requires_grad_(), use_cache=False).last_hidden_state
            out.square().mean().backward()
            embeds_BSD.grad = None

    return call
