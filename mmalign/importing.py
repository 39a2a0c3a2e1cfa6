"""LLaVA's own checkpoints as mmalign's: llava-hf folders, and the `mm_projector.bin` of the original code."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoProcessor, LlavaForConditionalGeneration

from mmalign import files, hub
from mmalign.adapters import Adapter
from mmalign.adapters.mlp import MLP
from mmalign.cards import Card
from mmalign.errors import CardError, DataError
from mmalign.llms.causal import CausalLM
from mmalign.vision.hf import HFVision

LLAVA = ("multi_modal_projector.linear_1.", "multi_modal_projector.linear_2.")


def adapter_weights(spec: str) -> dict[str, Tensor]:
    """The weights of an MLP adapter, under the names of ours: layers.0.weight, layers.2.weight, ...

    spec: our adapter.safetensors, LLaVA's mm_projector.bin (read without unpickling code), or a folder with either.
    Raises DataError for a file that holds no such adapter.
    """
    place = Path(files.path(spec))
    if place.is_dir():
        names = ("adapter.safetensors", "mm_projector.bin")
        place = next((place / name for name in names if (place / name).exists()), place / names[0])
    try:
        if place.suffix == ".safetensors":
            ours: dict[str, Tensor] = load_file(place)
            return ours
        raw: dict[str, Tensor] = torch.load(place, map_location="cpu", weights_only=True)
    except Exception as err:
        fix = "an adapter.safetensors of mmalign, or a mm_projector.bin of LLaVA"
        raise DataError(f"cannot read the adapter {place}: {err}", at=str(place), fix=fix) from err
    found = {name.rpartition("mm_projector.")[2]: value for name, value in raw.items() if "mm_projector." in name}
    if not found:
        raise DataError(f"{place} holds no mm_projector", at=str(place), fix="LLaVA's file of that name")
    single = all(name in ("weight", "bias") for name in found)  # LLaVA's `linear` has no list of layers
    return {f"layers.{'0.' if single else ''}{name}": value.float() for name, value in found.items()}


def load_adapter(adapter: Adapter, spec: str) -> None:
    """Put an adapter file's weights into an adapter; a CardError that names the widths where they do not fit."""
    weights = adapter_weights(spec)
    try:
        adapter.load_state_dict(weights)
    except RuntimeError as err:
        theirs = ", ".join(f"{name} {tuple(value.shape)}" for name, value in weights.items() if value.dim() > 1)
        ours = ", ".join(f"{name} {tuple(p.shape)}" for name, p in adapter.named_parameters() if p.dim() > 1)
        what = f"the adapter in {spec} has {theirs}; this one has {ours}"
        raise CardError(what, at=spec, fix="the encoder, language model and adapter it was trained with") from err


def llava(source: str, target: Path) -> None:
    """A llava-hf folder or hub id as a folder that `MMAlignModel.from_pretrained` and `mmalign eval` read."""
    whole: Any = LlavaForConditionalGeneration.from_pretrained(source, dtype="auto")
    processor: Any = AutoProcessor.from_pretrained(source)
    target.mkdir(parents=True)
    config, inner = whole.config, whole.model
    inner.vision_tower.save_pretrained(target / "vision")
    processor.image_processor.save_pretrained(target / "vision")
    words = processor.tokenizer
    words.chat_template = words.chat_template or processor.chat_template
    words.save_pretrained(target / "llm")
    lm = AutoModelForCausalLM.from_config(config.text_config, dtype=whole.dtype)
    lm.base_model.load_state_dict(inner.language_model.state_dict())
    lm.get_output_embeddings().load_state_dict(whole.lm_head.state_dict())
    lm.save_pretrained(target / "llm")
    eye = HFVision(str(target / "vision"), layer=config.vision_feature_layer)
    mouth = CausalLM(str(target / "llm"))
    adapter = MLP(eye.dim, mouth.dim, eye.grid, depth=2)
    projector = inner.multi_modal_projector
    adapter.layers[0].load_state_dict(projector.linear_1.state_dict())
    adapter.layers[2].load_state_dict(projector.linear_2.state_dict())
    cards = {
        "vision": Card(source, "mmalign.vision.hf.HFVision", {"layer": config.vision_feature_layer}),
        "adapter": Card(source, "mmalign.adapters.mlp.MLP", {"depth": 2}),
        "llm": Card(source, "mmalign.llms.causal.CausalLM"),
    }
    hub.write(target, adapter, cards)
