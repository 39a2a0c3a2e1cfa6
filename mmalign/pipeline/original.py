"""Folders of LLaVA's own code, known by their config.json: what they hold, and the folders outside them that they need.

They come in these layouts: whole weights (LlavaLlamaForCausalLM and its like, safetensors or `.bin`), with the vision
tower among them or outside; LoRA updates with `non_lora_trainables.bin`, of a base model outside.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmalign.errors import RunError
from mmalign.io import files

CLASS = re.compile(r"Llava([A-Z]\w*)ForCausalLM")  # transformers' own class is LlavaForConditionalGeneration
FAMILIES = {"llama": "llama", "mistral": "mistral", "qwen": "qwen2", "qwen2": "qwen2", "gemma": "gemma"}
SHARDED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin")
ADAPTER = "adapter_config.json"
PICKLED = ("pytorch_model*.bin", "mm_projector.bin", "non_lora_trainables.bin", "adapter_model.bin")  # weights only
LIKE = "a checkpoint like LLaVA-1.5's"


def is_original(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is one of LLaVA's own code."""
    return "mm_vision_tower" in config or CLASS.fullmatch(_architecture(config)) is not None


def _architecture(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else ""


def _class(config: Mapping[str, Any]) -> str:
    """LlavaLlamaForCausalLM, as the config says or as its model_type means."""
    _, _, family = str(config.get("model_type")).partition("llava_")
    return _architecture(config) or f"Llava{family.capitalize() or 'Llama'}ForCausalLM"


def family(config: Mapping[str, Any]) -> str:
    """transformers' model_type of the language model inside; empty for one that is not known."""
    match = CLASS.fullmatch(_class(config))
    return FAMILIES.get(match[1].lower(), "") if match else ""


def refused(config: Mapping[str, Any]) -> str:
    """Why our parts cannot hold a model of LLaVA's own code; empty when they can."""
    if not family(config):
        return f"it is a {_class(config)}"
    for key, suits, why in SETTINGS:
        if not suits(value := config.get(key)):
            return f"{why} ({key}: {value!r})"
    return ""


def _is(*values: Any) -> Callable[[Any], bool]:
    return lambda value: not value or value in values


# Settings that decide what the language model is shown: whether our parts do the same, and what it is where not.
SETTINGS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("mm_vision_tower", lambda value: isinstance(value, str) and value != "", "it has no vision tower, or several"),
    ("mm_vision_select_layer", lambda value: type(value) is int, "it does not read one layer of its tower"),
    ("mm_vision_select_feature", _is("patch"), "its language model is shown the tower's class token"),
    ("image_aspect_ratio", _is("pad", "square"), "it cuts pictures into tiles"),
    ("mm_patch_merge_type", _is("flat"), "it arranges patches anew"),
    (
        "mm_projector_type",
        lambda value: depth({"mm_projector_type": value}) is not None,
        "its projector is another one",
    ),
    ("mm_use_im_start_end", _is(), "it puts <im_start> and <im_end> around pictures"),
    ("mm_resampler_type", _is(), "it has a resampler"),
    ("s2", _is(), "it reads pictures at several scales"),
)


def depth(config: Mapping[str, Any]) -> int | None:
    """Linear layers of the projector, 0: identity; None: of another kind."""
    kind = config.get("mm_projector_type") or "linear"
    match = re.fullmatch(r"mlp([1-9]\d?)x_gelu", str(kind))
    return int(match[1]) if match else {"linear": 1, "identity": 0}.get(str(kind))


def check(place: Path, config: Mapping[str, Any]) -> None:
    """Raise a RunError for a folder that cannot be brought in: of another kind, without weights, or whose tower or
    base is not on this machine. Nothing is fetched, and no weights are read."""
    if reason := refused(config):
        raise RunError(f"cannot import {place}: {reason}", at=str(place / "config.json"), fix=LIKE)
    if not has_weights(place):
        if any((place / f"mm_projector.{kind}").exists() for kind in ("bin", "safetensors")):
            fix = f"mmalign import {place} DIR, which makes it an adapter that a recipe names"
            raise RunError(f"{place} holds a projector, and no language model", at=str(place), fix=fix)
        raise RunError(f"{place} holds no weights", at=str(place), fix=f"{LIKE}, weights included")
    outside(place)


def has_weights(place: Path) -> bool:
    """Whether a folder has weights of a language model, or LoRA updates to some."""
    return any(files.exists(place / name) for name in (*SHARDED, *SINGLE, ADAPTER))


def is_pickled(place: Path) -> bool:
    """Whether some of a folder's weights are `.bin` files, as it stands without them."""
    return files.exists(place / ADAPTER) or not any(place.glob("model*.safetensors"))


def outside(place: Path) -> dict[str, Path]:
    """The folders that an original LLaVA folder needs besides itself: `tower`, and `base` where it is a LoRA folder.

    Each as the folder names it: a path, from there or from the working folder, or a repository that the hub's cache
    holds. RunError for one that is not there: opening a folder fetches nothing that its user did not name.
    """
    needs = {"tower": _named(place, place / "config.json", "mm_vision_tower")}
    if (place / ADAPTER).exists():
        needs["base"] = _named(place, place / ADAPTER, "base_model_name_or_path")
    return needs


def _named(place: Path, file: Path, key: str) -> Path:
    name = str(files.read_json(file, kind=dict[str, Any]).get(key))
    for folder in (place / name, Path(name)):
        if files.exists(folder / "config.json"):
            return folder.resolve()
    cached = _cached(name)
    if cached is None:
        where = f"write the path of its folder into {file} as {key}"
        hub = f"hf download {name}, or " if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else ""
        raise RunError(f"{place} needs {name}, which is not on this machine", at=f"{file}  {key}", fix=hub + where)
    return cached


def _cached(name: str) -> Path | None:
    from huggingface_hub import snapshot_download  # here, because nothing else on this side needs it

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        return None
