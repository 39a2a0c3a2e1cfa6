"""LLaVA's own checkpoints as mmalign's: llava-hf folders, and the `mm_projector.bin` of the original code."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, LlavaForConditionalGeneration

from mmalign.adapters import Adapter
from mmalign.adapters.mlp import MLP
from mmalign.errors import CardError, DataError, RunError
from mmalign.io import files, sums, yaml
from mmalign.llms import plain
from mmalign.plan.cards import Card
from mmalign.vision.hf import HFVision
from mmalign.vlm import folder

WHOLE = "a whole llava-hf folder, weights included"


def adapter_weights(spec: str) -> dict[str, Tensor]:
    """The weights of an MLP adapter, under the names of ours: layers.0.weight, layers.2.weight, ...

    spec: our adapter.safetensors, LLaVA's mm_projector.bin (read without unpickling code), or a folder with either.
    Raises DataError for a file that holds no such adapter.
    """
    place = Path(files.path(spec))
    if place.is_dir():
        names = ("adapter.safetensors", "mm_projector.bin")
        place = next((place / name for name in names if (place / name).exists()), place / names[0])
    ours = place.suffix == ".safetensors"
    try:
        raw = load_file(place) if ours else dict(torch.load(place, map_location="cpu", weights_only=True))
    except Exception as err:
        fix = "an adapter.safetensors of mmalign, or a mm_projector.bin of LLaVA"
        raise DataError(f"cannot read the adapter {place}: {err}", at=str(place), fix=fix) from err
    if ours:
        return _layers(raw, place)
    weights = {name.rpartition("mm_projector.")[2]: value for name, value in raw.items() if "mm_projector." in name}
    single = all(name in ("weight", "bias") for name in weights)  # LLaVA's `linear` has no list of layers
    return _layers({f"layers.{'0.' if single else ''}{name}": value.float() for name, value in weights.items()}, place)


def _layers(weights: dict[str, Tensor], place: Path) -> dict[str, Tensor]:
    """The weights, which are those of linear layers alone."""
    if not weights or not all(re.fullmatch(r"layers\.\d+\.(weight|bias)", name) for name in weights):
        fix = "LLaVA's mm_projector.bin, or the adapter.safetensors of a linear adapter or an MLP"
        raise DataError(f"{place} holds no mm_projector", at=str(place), fix=fix)
    return weights


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


def adapter(source: str, target: Path, name: str) -> dict[str, Any]:
    """A projector as a folder of cards with one adapter, `name`, that begins with its weights; returns the card.

    source: as for `adapter_weights`. A recipe uses it with `registry: [target]` and `model: {adapter: name}`.
    """
    weights = adapter_weights(source)
    linears = [value for value in weights.values() if value.dim() == 2]
    widths = {"patch_dim": linears[0].shape[1], "llm_dim": linears[-1].shape[0]}
    card = {
        "summary": f"the projector of {Path(source).name}, {linears[0].shape[1]} to {linears[-1].shape[0]}",
        "target": "mmalign.integrations.llava.Projector",
        "args": {"depth": len(linears), "checkpoint": f"./{name}.safetensors"},
        "facts": {"keeps_grid": True, "linears": "depth", **widths},
    }
    with files.made(target) as beside:
        cards = beside / "adapters"
        cards.mkdir()
        save_file({key: value.contiguous() for key, value in weights.items()}, cards / f"{name}.safetensors")
        files.write(cards / f"{name}.yaml", yaml.dump(card))
    return card


class Projector(MLP):
    """An MLP adapter that begins with the weights of a file, as for `adapter_weights`."""

    def __init__(
        self, patch_dim: int, llm_dim: int, grid: tuple[int, int], depth: int = 2, checkpoint: str | None = None
    ) -> None:
        super().__init__(patch_dim, llm_dim, grid, depth)
        if checkpoint:
            load_adapter(self, checkpoint)


projector = Projector  # as cards name it that 0.1.0 wrote


def llava(source: str, target: Path, template: str | None = None) -> None:
    """A llava-hf folder as a folder that `mmalign.load` and `mmalign eval` read.

    template: the chat template, jinja text; None: that of the model it was exported from, or the checkpoint's own where
    it marks answers, else ours for the same format. Written whole or not at all. Raises RunError for a model that
    mmalign's parts cannot hold.
    """
    with sums.verifying(sums.read(Path(source)), sums.AGAIN):
        config = _read(AutoConfig, source)
        if reason := _refused(config):
            raise RunError(f"cannot import {source}: {reason}", at=source, fix="a checkpoint like LLaVA-1.5's")
        processor = _read(AutoProcessor, source)
        words = processor.tokenizer
        own = plain.marked(Path(source)) or words.chat_template or processor.chat_template
        words.chat_template = template or template_of(source, own)
        whole, about = _read(LlavaForConditionalGeneration, source, dtype="auto", output_loading_info=True)
        if lacking := sorted(about["missing_keys"]):  # transformers draws them at random
            what = f"cannot load {source}: it lacks {len(lacking)} weights, such as {lacking[0]}"
            raise RunError(what, at=source, fix=WHOLE)
    inner = whole.model
    with files.made(target) as beside:
        inner.vision_tower.save_pretrained(beside / "vision")
        processor.image_processor.save_pretrained(beside / "vision")
        words.save_pretrained(beside / "llm")
        lm = AutoModelForCausalLM.from_config(config.text_config, dtype=whole.dtype)
        lm.base_model.load_state_dict(inner.language_model.state_dict())
        lm.get_output_embeddings().load_state_dict(whole.lm_head.state_dict())
        lm.save_pretrained(beside / "llm")
        vision = HFVision(str(beside / "vision"), layer=config.vision_feature_layer)
        width, between = lm.config.hidden_size, config.projector_hidden_act
        mlp = _mlp(inner.multi_modal_projector, between, vision.dim, width, vision.grid)
        folder.write(beside, mlp, _cards(source, config.vision_feature_layer, mlp))


def _read(kind: Any, source: str, **options: Any) -> Any:
    """What a class of transformers makes of a checkpoint; a RunError where it cannot read it."""
    try:
        return kind.from_pretrained(source, **options)
    except Exception as err:  # every library below it has its own
        reason = (str(err).strip() or type(err).__name__).splitlines()[0]
        raise RunError(f"cannot load {source}: {reason}", at=source, fix=WHOLE) from err


def _refused(config: Any) -> str:
    """Why our parts cannot hold a LLaVA model; empty when they can."""
    if config.model_type != "llava":
        return f"it is a {config.model_type}"
    if not isinstance(config.vision_feature_layer, int):
        return f"it reads several layers of its encoder, {config.vision_feature_layer}"
    if config.projector_hidden_act not in ("gelu", "linear"):
        return f"its projector has a {config.projector_hidden_act} between its layers"
    if not config.multimodal_projector_bias:
        return "its projector has no bias"
    if config.vision_feature_select_strategy == "full" and config.vision_config.model_type in CLASSED:
        return "its language model is shown the encoder's class token"
    return ""


CLASSED = ("clip_vision_model", "dinov2")  # their first token is no patch
# What a published chat format is known by, and our template of it; theirs do not mark answers.
FORMATS = {
    "ASSISTANT:": "vicuna_v1", "message['role'].upper()": "vicuna_v1",
    "system\nYou are a helpful assistant.": "qwen2", "<|im_start|>": "chatml",
    "<|start_header_id|>": "llama3", "first_user_prefix": "gemma3", "<start_of_turn>": "gemma",
    "[INST]": "mistral", "<|assistant|>": "phi3",
}  # fmt: skip


def template_of(source: str, own: str | None) -> str:
    if own and re.search(r"{%-?\s*generation\s*-?%}", own):
        return own
    name = next((name for mark, name in FORMATS.items() if mark in (own or "")), None)
    if name is None:
        fix = "--template FILE, with {% generation %} marks around the answers"
        raise RunError(f"the chat template of {source} is of no known format", at=source, fix=fix)
    place = files.local(f"pkg:mmalign.llms/templates/{name}.jinja")
    assert place is not None
    return place.read_text(encoding="utf-8")


def _mlp(theirs: Any, between: str, patch_dim: int, llm_dim: int, grid: tuple[int, int]) -> MLP:
    """LLaVA's projector; with nothing between its two layers they are one."""
    first, second = theirs.linear_1, theirs.linear_2
    if between == "gelu":
        mlp = MLP(patch_dim, llm_dim, grid, depth=2)
        mlp.layers[0].load_state_dict(first.state_dict())
        mlp.layers[2].load_state_dict(second.state_dict())
        return mlp
    mlp = MLP(patch_dim, llm_dim, grid, depth=1)
    weight, bias = second.weight.float(), second.bias.float()
    one = {"weight": weight @ first.weight.float(), "bias": weight @ first.bias.float() + bias}
    mlp.layers[0].load_state_dict(one)
    return mlp


def _cards(source: str, layer: int, adapter: MLP) -> dict[str, Card]:
    depth = sum(isinstance(module, nn.Linear) for module in adapter.layers)
    return {
        "vision": Card(source, "mmalign.vision.hf.HFVision", {"layer": layer}),
        "adapter": Card(source, "mmalign.adapters.mlp.MLP", {"depth": depth}),
        "llm": Card(source, "mmalign.llms.causal.CausalLM"),
    }
