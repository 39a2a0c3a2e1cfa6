"""LoRA (arXiv 2106.09685) and QLoRA (arXiv 2305.14314) through peft: low-rank updates learn, the weights stay.

Letters: R rank, I inputs and O outputs of a linear layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.errors import CardError

NAME = "default"  # of the update, inside peft


@dataclass(frozen=True)
class Lora:
    """rank: R. alpha: the update counts alpha / R. dropout: of what goes into it. targets: names of the layers that
    get one (q_proj, ...), or all-linear: all but the head."""

    rank: int
    alpha: float
    dropout: float
    targets: str | Sequence[str]

    def __post_init__(self) -> None:
        if find_spec("peft") is None:
            raise CardError("LoRA needs the package peft", at="args.lora", fix="pip install mmalign[lora]")

    def put_into(self, lm: nn.Module) -> None:
        """An update beside every target layer of a causal LM; a CardError where there is none."""
        from peft import LoraConfig, inject_adapter_in_model

        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        config = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=targets, task_type="CAUSAL_LM"
        )
        linear = sorted({name.rpartition(".")[2] for name, m in lm.named_modules() if isinstance(m, nn.Linear)})
        try:
            inject_adapter_in_model(config, lm, adapter_name=NAME)
        except ValueError as err:
            what = f"no layer of {type(lm).__name__} can take lora_targets {self.targets}"
            raise CardError(what, at="args.lora_targets", fix=f"all-linear, or some of {', '.join(linear)}") from err


def quantized(bits: int) -> Any:
    """How transformers loads weights in 4 or 8 bits; NF4 for 4, as QLoRA does. A CardError without bitsandbytes."""
    if find_spec("bitsandbytes") is None:
        what = f"weights in {bits} bits need the package bitsandbytes"
        raise CardError(what, at="args.bits", fix="pip install mmalign[bits]")
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def learn(lm: nn.Module) -> list[nn.Parameter]:
    """The parameters of the updates."""
    return [p for name, p in lm.named_parameters() if ".lora_" in name]


def merged(lm: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of the causal LM without updates and quantization: W + alpha / R B A (section 4.1), in fp32 and back.

    state: of `lm` as it is, with its own names; tensors may be others than the module's (gathered, trained).
    """
    weights, dtype = dict(state), next(lm.parameters()).dtype  # of the embeddings, which are never quantized
    for name, module in lm.named_modules():
        if _is_quantized(module):
            _put(weights, f"{name}.weight", _dequantized(module).to(dtype))
    for name, module in lm.named_modules():
        if hasattr(module, "lora_A") and NAME in getattr(module, "scaling", ()):
            down_RI, up_OR = (weights.pop(f"{name}.lora_{letter}.{NAME}.weight") for letter in "AB")
            update_OI = module.scaling[NAME] * (up_OR.float() @ down_RI.float())
            weight_OI = weights[f"{name}.base_layer.weight"]
            whole_OI = weight_OI.float() + update_OI.to(weight_OI.device)
            weights[f"{name}.base_layer.weight"] = whole_OI.to(weight_OI.dtype)
    return {name.replace(".base_layer.", "."): value for name, value in weights.items()}


def _is_quantized(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")  # its own: peft's layers show that of the layer they stand beside
    return hasattr(weight, "quant_state") or hasattr(weight, "SCB")


def _dequantized(module: Any) -> Tensor:
    """The weight that the layer computes with. Behind a `state_dict`, which undoes bitsandbytes' packing for CPUs."""
    weight = module.weight
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        weight_OI: Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return weight_OI.cpu()
    scale_O = module.state.SCB if weight.SCB is None else weight.SCB  # it moves with the first pass
    whole_OI: Tensor = weight.data.cpu().float() * scale_O.cpu()[:, None] / 127
    return whole_OI


def _put(state: dict[str, Tensor], name: str, value: Tensor) -> None:
    """In place of a quantized weight and what belongs to it."""
    prefix = name.removesuffix("weight")
    for key in [k for k in state if k.startswith(prefix) and k != f"{prefix}bias"]:
        del state[key]
    state[name] = value


def plain(config: Any) -> Any:
    """A causal LM of a configuration, without quantization and without memory for weights."""
    from transformers import AutoModelForCausalLM

    about = {key: value for key, value in config.to_dict().items() if key != "quantization_config"}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(type(config).from_dict(about))
