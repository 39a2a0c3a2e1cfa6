"""TRL's SFTTrainer: it lays a head of its own over a model's forward, and computes the loss from what that returns.

    SFTTrainer(model=supervised, args=SFTConfig(...), processing_class=processor, train_dataset=...)

Called as that head is, a supervised model returns numbers of which the trainer makes the weighted sum of its terms.

Letters: N trained tokens, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from mmalign.errors import CheckError

ROWS = 1024  # tokens a time


@dataclass
class Fused(ModelOutput):  # type: ignore[misc]
    """What TRL's head returns. It reads sums alone, so each is one number.

    log_probs: divided by the trained tokens, and with its sign changed, it is the loss. label_mask: the trained tokens.
    entropy, is_top1: of what is predicted at each of them, and how many are predicted right.
    """

    loss: Tensor | None = None
    log_probs: Tensor | None = None
    label_mask: Tensor | None = None
    entropy: Tensor | None = None
    is_top1: Tensor | None = None


def fused(terms: Mapping[str, Any]) -> Fused:
    """Of a supervised model's terms with their `scores`."""
    loss, scores = terms["loss"], terms["scores"]
    tokens = scores["tokens"]
    return Fused(loss, -loss * tokens.clamp(min=1), tokens, scores["entropy"], scores["right"])


@torch.no_grad()
def scores(logits_NV: Tensor, token_N: Tensor) -> dict[str, Tensor]:
    """Of the trained tokens: how many there are, the entropy of what is predicted, and how many are predicted right."""
    entropy, right = torch.zeros((), device=logits_NV.device), torch.zeros((), device=logits_NV.device)
    for part_NV, own_N in zip(torch.split(logits_NV, ROWS), torch.split(token_N, ROWS), strict=True):
        logp_NV = part_NV.float().log_softmax(-1)
        entropy -= (logp_NV.exp() * logp_NV).sum()
        right += (part_NV.argmax(-1) == own_N).sum()
    return {"tokens": torch.tensor(len(token_N), device=logits_NV.device), "entropy": entropy, "right": right}


class LoraAround(CheckError, AttributeError):
    """peft was laid around a supervised model, and calls it below its own `__call__`: its terms would be lost.

    An AttributeError, so that to ask a model whether it has something stays a question.
    """

    def __init__(self) -> None:
        what = "LoRA lies around a supervised model, and its terms would be left out of the loss"
        fix = "LoRA first: mmalign.supervise(peft.get_peft_model(model, lora), ...), and no peft_config for the trainer"
        super().__init__(what, at="peft_config", fix=fix)


def check(args: Any) -> None:
    """Refuse settings of SFTConfig whose loss is of single tokens, which the terms of visual tokens are not."""
    kind = getattr(args, "loss_type", "nll")
    if kind != "nll":
        what = f"loss_type: {kind} weighs single tokens, and the terms of visual tokens are none"
        raise CheckError(what, at="SFTConfig", fix='loss_type="nll"')
