"""What the weights of an exported LLaVA are called: as in the published llava-hf checkpoints, which every client reads.

transformers 5 holds a CLIP or SigLIP tower flat (`vision_tower.embeddings`), writes it so, and reads both names; vLLM's
loader and gguf's tensor map know the published ones alone (`vision_tower.vision_model.embeddings`).
"""

from typing import Any

from torch import Tensor

NESTED = ("clip_vision_model", "siglip_vision_model")  # towers published with their parts inside `vision_model`
TOWER = "model.vision_tower."


def published(model: Any) -> dict[str, Tensor]:
    """The weights of a LlavaForConditionalGeneration, to be handed to its `save_pretrained` as `state_dict`.

    It writes them as it writes its own, but for a CLIP's or SigLIP's, which stand as in llava-hf/llava-1.5-7b-hf.
    """
    weights: dict[str, Tensor] = model.state_dict()
    if model.config.vision_config.model_type not in NESTED:
        return weights
    return {nested(name): value for name, value in weights.items()}


def nested(name: str) -> str:
    """The name of a weight, a flat tower's inside `vision_model`; any other as it is."""
    inside = f"{TOWER}vision_model."
    return name.replace(TOWER, inside, 1) if name.startswith(TOWER) and not name.startswith(inside) else name


def unread(config: Any) -> str:
    """What of a LLaVA's configuration vLLM 0.33 does not read; empty where it reads all."""
    kind = config.vision_config.model_type
    if kind not in NESTED:
        return f"vLLM and llama.cpp have no {kind} in a LLaVA: transformers alone reads it"
    if config.projector_hidden_act == "linear":
        return f"its adapter is one linear layer, which vLLM takes with `hf_overrides={IDENTITY}`"
    return ""


IDENTITY = {"projector_hidden_act": "torch.nn.modules.Identity"}  # vLLM's name for transformers' `linear`
