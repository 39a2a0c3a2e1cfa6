"""The parts of a vision-language model of transformers: vision tower, what is between, and language model.

The language model is its decoder, with embeddings and head; the tower is what transformers calls the encoder of
images, up to the features that it gives. All else is between them: also what lies inside the encoder's module and
makes visual tokens of those features (Qwen-VL's merger), which one picture tells, sent through the model.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mmalign.errors import CheckError
from mmalign.integrations.declared import Parts
from mmalign.vlm.model import PARTS
from mmalign.vlm.supervised import reached

PICTURE = (64, 64)  # pixels
FIX = "`trains` without it, or another model: mmalign list vlms"
Named = list[tuple[str, nn.Parameter]]


def partition(parts: Parts) -> dict[str, Named]:
    """{part: (name, parameter)} of a model, each parameter in one of PARTS. CheckError where that cannot be told."""
    encoder = _encoder(parts)
    llm = {id(p) for module in (parts.language_model, parts.head, parts.embeddings) for p in module.parameters()}
    vision = {id(p) for p in encoder.parameters()} - _behind(parts, encoder)
    told: dict[str, Named] = {part: [] for part in PARTS}
    for name, parameter in parts.model.named_parameters():
        key = id(parameter)
        told["llm" if key in llm else "vision" if key in vision else "adapter"].append((name, parameter))
    for part, own in told.items():
        if not own:
            what = "the vision tower" if part == "vision" else "what is between its tower and its language model"
            raise _untold(parts, f"which of its parameters are {what}")
    return told


def _encoder(parts: Parts) -> nn.Module:
    """What transformers calls the encoder of images."""
    encoder: Any = parts.model.get_encoder(modality="image")
    if not isinstance(encoder, nn.Module) or encoder in (parts.model, parts.model.base_model):
        raise _untold(parts, 'get_encoder("image"): its vision tower')
    if any(module is parts.language_model for module in encoder.modules()):
        raise _untold(parts, 'get_encoder("image"): its vision tower')
    return encoder


def _untold(parts: Parts, what: str) -> CheckError:
    kind = parts.model.config.model_type
    return CheckError(f"a {kind} model does not declare {what}", at="trains", fix=FIX)


def _behind(parts: Parts, encoder: nn.Module) -> set[int]:
    """ids of the encoder's parameters that its features do not depend on, and the model's answers do."""
    features: list[Tensor] = []

    def keep(module: Any, args: Any, out: Any) -> None:
        first = getattr(out, "last_hidden_state", None)
        features.append(first if first is not None else out if isinstance(out, Tensor) else out[0])

    learn = [(parameter, parameter.requires_grad) for parameter in parts.model.parameters()]
    modes = [(module, module.training) for module in parts.model.modules()]
    hook = encoder.register_forward_hook(keep)
    try:
        parts.model.eval()
        parts.model.requires_grad_(True)
        with torch.enable_grad():
            logits = parts.model(**_inputs(parts), use_cache=False).logits
        if not features:
            raise _untold(parts, "what its vision tower gives: it was not called")
        return (reached(logits) - reached(features[-1])) & {id(p) for p in encoder.parameters()}
    finally:
        hook.remove()
        for parameter, before in learn:
            parameter.requires_grad_(before)
        for module, training in modes:
            module.training = training


def _inputs(parts: Parts) -> dict[str, Any]:
    """One picture, as the processor has it."""
    from PIL import Image

    picture, weight = Image.new("RGB", PICTURE), next(parts.embeddings.parameters())
    batch = parts.processor(text=[parts.mark], images=[[picture]], return_tensors="pt")
    tensors = {
        name: own.to(weight.device) for name, own in batch.items() if isinstance(own, Tensor) and name != "labels"
    }
    return {name: own.to(weight.dtype) if own.is_floating_point() else own for name, own in tensors.items()}
