"""A forward pass of a Llama that adds up what the text looks at (BASIC, eq. 5), against the same pass on plain sdpa.

On a CPU: 6 layers, 512 wide, fp32, two images of 576 tokens. On a GPU: 16 layers of Llama 3 8B, bf16, eight images.
"""

import torch
from transformers import LlamaConfig, LlamaModel

from mmalign.llms import Look, Places, watch

from . import Pairs, in_turn
from ._work import clock, on_gpu

TARGET = 1.03
PATCHES, BEFORE, BEHIND = 576, 35, 50  # tokens of an image, and of the text around it
TIMES = 9


class Wrapped(torch.nn.Module):
    """What `watch` takes for a causal LM: its layers and its configuration."""

    def __init__(self, model: LlamaModel) -> None:
        super().__init__()
        self.base_model, self.config = model, model.config


def measure() -> Pairs:
    torch.set_num_threads(1)
    cuda = torch.cuda.is_available()
    images, layers, dim, heads, inner = (8, 16, 4096, 32, 14336) if cuda else (2, 6, 512, 8, 1408)
    config = LlamaConfig(
        hidden_size=dim, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads // 4, vocab_size=32, max_position_embeddings=1024,
    )  # fmt: skip
    model = (on_gpu(LlamaModel) if cuda else LlamaModel)(config).eval()
    lm, look = Wrapped(model), Look(tuple([2 / layers] * (layers // 2)), attention=True)
    length = BEFORE + PATCHES + BEHIND
    embeds_RSD = torch.randn(images, length, dim, device=model.device, dtype=model.dtype)
    mask_RS = torch.ones(images, length, device=model.device).long()
    places = _places(images, length, model.device)

    def plain() -> None:
        model.set_attn_implementation("sdpa")
        with torch.no_grad():
            model(inputs_embeds=embeds_RSD, attention_mask=mask_RS, use_cache=False)

    def ours() -> None:
        model.set_attn_implementation(watch.NAME)
        with torch.no_grad(), watch.watched(lm, [look], places) as seen:
            model(inputs_embeds=embeds_RSD, attention_mask=mask_RS, use_cache=False)
        assert seen.shares[look].isfinite().all()

    lm.set_attn_implementation = model.set_attn_implementation  # type: ignore[assignment]
    watch.prepare(lm, [look])
    return in_turn(ours, plain, TIMES, clock)


def _places(images: int, length: int, device: torch.device) -> Places:
    text_RS = torch.ones(images, length, dtype=torch.bool, device=device)
    text_RS[:, BEFORE : BEFORE + PATCHES] = False
    column_Q = torch.arange(BEFORE, BEFORE + PATCHES, device=device)
    return Places(torch.arange(images, device=device), column_Q.expand(images, -1), text_RS)
