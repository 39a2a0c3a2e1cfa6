"""How an encoder's patches come into the joint space of images and text: `plain`, `value` or `surgery`.

plain: the last layer's output, through what turns the pooled image into the joint space (SEA, eq. 4). In published
CLIPs a patch gathers from others what it is not, and its nearest words are often those of the rest of the picture.

value: MaskCLIP (arXiv 2112.01071). Every patch goes through the last layer alone, so that attention passes on its own
value, through the output projection. Residual and MLP of that layer stay, as in the authors' code; CLIP Surgery's
authors, who compare with it, leave the MLP out.

surgery: the architecture of CLIP Surgery (arXiv 2304.05653). A second path starts before the last six layers, as in the
authors' code whatever the depth. Each of them adds to it what its attention makes of the first path's states with
values in place of queries and keys, softmax(v v^T / sqrt(d)) v, and no MLP; the first path runs on as it is. The class
token is looked at like a patch. Their second step, which takes what all texts share off the similarities, is not part
of it.

Letters: as in mmalign.vision; T tokens, those before the patches included, h heads, d width of a head.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import CardError, one_of

Dense = Literal["plain", "value", "surgery"]
DENSE: tuple[Dense, ...] = ("plain", "value", "surgery")
DEEP = 6  # layers that the second path of surgery runs beside; of a smaller tower, all but the first
SEQUENCES = 32_768  # at a time: CUDA's attention kernels take at most 65,535

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Attention:
    """An attention layer, for surgery. values: hidden_BTC to value_BTC, norm included. out: from there to what the
    layer's attention adds to the hidden state."""

    values: Step
    out: Step
    heads: int


def available(dense: Dense, ways: Collection[Dense], why: str, name: str) -> bool:
    """Whether the encoder `name`, which has these ways, has dense features of the kind that is asked for.

    why: what stands in the way of the others. A CardError for a kind it does not have, but for plain: an encoder
    without dense features still has patches.
    """
    one_of("dense", dense, DENSE)
    if dense in ways or dense == "plain":
        return dense in ways
    fix = " or ".join(f"dense: {way}" for way in ways) or "leave `dense` out, and take labels from another encoder"
    raise CardError(f"{name} has no dense features of the kind {dense}: it {why}", at="args.dense", fix=fix)


def states_of(dense: Dense, layers: int) -> list[int]:
    """The hidden states that dense features are made of: after so many layers."""
    return {
        "plain": [layers],
        "value": [layers - 1],
        "surgery": list(range(max(min(1, layers - 1), layers - DEEP), layers)),
    }[dense]


def alone(module: Step, patches_BPC: Tensor) -> Tensor:
    """Every patch through `module` as a sequence of its own: (B, P, the width of its output)."""
    single_N1C = patches_BPC.reshape(-1, 1, patches_BPC.shape[-1])
    output = torch.cat([module(some_N1C) for some_N1C in torch.split(single_N1C, SEQUENCES)])
    return output.reshape(*patches_BPC.shape[:2], output.shape[-1])


def operated(states: Mapping[int, Tensor], attentions: Mapping[int, Attention]) -> Tensor:
    """hidden_BTC of surgery's second path. states: hidden_BTC before its layers; attentions: of these layers."""
    path_BTC = states[min(states)]
    for number, hidden_BTC in states.items():
        path_BTC = path_BTC + value_to_value(attentions[number], hidden_BTC)
    return path_BTC


def value_to_value(attention: Attention, hidden_BTC: Tensor) -> Tensor:
    """What an attention layer adds to its hidden state where values are queries and keys as well."""
    value_BTC = attention.values(hidden_BTC)
    value_BhTd = value_BTC.view(*value_BTC.shape[:2], attention.heads, -1).transpose(1, 2)
    mixed_BhTd = F.scaled_dot_product_attention(value_BhTd, value_BhTd, value_BhTd)  # scaled by 1 / sqrt(d)
    return attention.out(mixed_BhTd.transpose(1, 2).flatten(2))
