"""A folder of LLaVA's own code taken apart: weights by name, LoRA merged, each part as transformers saves it.

Which folders these are, and what is refused, says mmalign/pipeline/original.py. Nothing of LLaVA's code is needed.

Letters: R rank, I inputs and O outputs of a linear layer.
"""

import math
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer

from mmalign.adapters import Adapter
from mmalign.adapters.mlp import MLP, Identity
from mmalign.errors import RunError
from mmalign.integrations import projectors
from mmalign.io import files, pretrained
from mmalign.pipeline.original import ADAPTER, LIKE, SHARDED, SINGLE, depth, family, outside
from mmalign.plan.cards import Card
from mmalign.vision.hf import HFVision

Weights = dict[str, Tensor]
WHOLE = f"{LIKE}, weights included"
TOWER = re.compile(r"model\.vision_tower\.(vision_tower\.)?(vision_model\.)?")
PROJECTOR = "model.mm_projector."
UNUSED = re.compile(r"model\.image_newline|.*\.rotary_emb\.inv_freq|.*\.position_ids")  # tiles are refused; buffers
UPDATE = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
WORDS = ("tokenizer*", "chat_template.jinja", "*_tokens*.json", "vocab.json", "merges.txt")
EARLIER = ("rope_theta", "rope_scaling", "torch_dtype")  # names that a configuration still takes
FORMATS = {"llama": "vicuna_v1", "mistral": "mistral"}  # LLaVA-1.5's and 1.6's, whose tokenizers name none
BLANKS = (
    "{%- set read = namespace(turns=[]) -%}{%- for m in messages -%}"
    '{%- set text = m.content | replace("<image>", "<image> ") -%}'
    '{%- set read.turns = read.turns + [{"role": m.role, "content": text}] -%}'
    "{%- endfor -%}{%- set messages = read.turns -%}"
)
FIRST = '{%- set bos_token = bos_token + " " -%}'  # Mistral's prompts begin with a blank of their own


def parts(source: Path, config: Mapping[str, Any], target: Path) -> tuple[Adapter, dict[str, Card], Any]:
    """Writes vision/ and llm/ into `target`; the adapter, the cards, and the tokenizer, whose template may be lacking.

    Raises RunError for files that cannot be read, and for weights that lack or that no part has a place for.
    """
    needs = outside(source)
    weights = {name: value for name, value in _all(source, needs.get("base")).items() if not UNUSED.fullmatch(name)}
    inside = {TOWER.sub("", name, count=1): weights.pop(name) for name in list(weights) if TOWER.match(name)}
    projector = {name: weights.pop(name) for name in list(weights) if name.startswith(PROJECTOR)}
    dtype = _language(source, config, weights, target / "llm")
    words = _tokenizer(needs.get("base", source), target / "llm")
    vision, card = _vision(source, needs["tower"], config, inside, dtype, target / "vision")
    width = AutoConfig.from_pretrained(target / "llm").hidden_size
    adapter = _adapter(source, projector, depth(config) or 0, vision, width).to(dtype)
    kind = "mmalign.adapters.mlp." + type(adapter).__name__
    args = {"depth": depth(config)} if isinstance(adapter, MLP) else {}
    cards = {"vision": card, "adapter": Card(str(source), kind, args)}
    return adapter, cards | {"llm": Card(str(source), "mmalign.llms.causal.CausalLM")}, words


def template(config: Mapping[str, Any]) -> str | None:
    """The name of the chat template that LLaVA asks such a model with, where its tokenizer has none."""
    return FORMATS.get(family(config))


def spelled(template: str, words: Any) -> str:
    """A template of ours that spells a prompt as LLaVA does: what stands behind the beginning and behind an image as
    texts of their own, which a tokenizer.model begins with a blank. Where it puts none there, the template does."""
    alone, (_, *behind) = words.tokenize("x"), words.tokenize(f"{words.eos_token}x")
    if not alone[0].startswith("▁") or behind == alone:
        return template
    return BLANKS + (FIRST if "'USER: '" in template else "") + template


# Weights by name


def _all(source: Path, base: Path | None) -> Weights:
    """The weights of a folder under the names of LLaVA's class; of a LoRA folder, those of its base with updates."""
    if base is None:
        return _read(_files(source))
    updates = _read(_first(source, "adapter_model.safetensors", "adapter_model.bin"))
    trained = _read(_first(source, "non_lora_trainables.safetensors", "non_lora_trainables.bin"))
    weights = _read(_files(base)) | {_plain(name): value for name, value in trained.items()}
    return merged(weights, {_plain(name): value for name, value in updates.items()}, source / ADAPTER)


def _plain(name: str) -> str:
    """A weight's name in the model itself, without what peft puts before it."""
    return name.removeprefix("base_model.model.")


def merged(weights: Weights, updates: Weights, place: Path) -> Weights:
    """W + scale B A (arXiv 2106.09685, section 4.1), in fp32 and back. place: the adapter_config.json."""
    about = files.read_json(place, kind=dict[str, Any])
    odd = [key for key in ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern") if about.get(key)]
    if odd or about.get("peft_type") != "LORA":
        key = (*odd, "peft_type")[0]
        raise RunError(f"it is no plain LoRA: {key} is {about.get(key)!r}", at=str(place), fix=LIKE)
    rank, alpha = int(about["r"]), float(about["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if about.get("use_rslora") else rank)
    weights, pairs = dict(weights), dict[str, dict[str, Tensor]]()
    for name, value in updates.items():
        match = UPDATE.fullmatch(name)
        if match is None or f"{match[1]}.weight" not in weights:
            raise RunError(f"an update has no place in the base model: {name}", at=str(place), fix=LIKE)
        pairs.setdefault(f"{match[1]}.weight", {})[match[2]] = value
    for name, pair in pairs.items():
        update_OI = scale * (pair["B"].float() @ pair["A"].float())
        weights[name] = (weights[name].float() + update_OI).to(weights[name].dtype)
    return weights


def _files(place: Path) -> list[Path]:
    """The files of a folder's weights: those that its index names, or the single one."""
    index = next((place / name for name in SHARDED if (place / name).exists()), None)
    if index is None:
        return _first(place, *SINGLE)
    shards = set(files.read_json(index, kind=dict[str, Any]).get("weight_map", {}).values())
    if not shards or not all(isinstance(name, str) and Path(name).name == name for name in shards):
        raise RunError(f"{index.name} names no files of its folder", at=str(index), fix=WHOLE)
    return [place / name for name in sorted(shards)]


def _first(place: Path, *names: str) -> list[Path]:
    there = [place / name for name in names if (place / name).exists()]
    if not there:
        raise RunError(f"{place} lacks {' or '.join(names)}", at=str(place), fix=WHOLE)
    return there[:1]


def _read(places: Iterable[Path]) -> Weights:
    """Tensors by name; `.bin` files are read as weights only, no code in them is run."""
    weights: Weights = {}
    for place in places:
        try:
            weights |= load_file(place) if place.suffix == ".safetensors" else _unpickled(place)
        except Exception as err:  # every library below it has its own
            reason = (str(err).strip() or type(err).__name__).splitlines()[0]
            raise RunError(f"cannot read the weights {place}: {reason}", at=str(place), fix=WHOLE) from err
    return weights


def _unpickled(place: Path) -> Weights:
    weights = torch.load(place, map_location="cpu", weights_only=True, mmap=is_zipfile(place))
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError("it holds no tensors by name")
    return weights


# Parts


def _language(source: Path, config: Mapping[str, Any], weights: Weights, target: Path) -> torch.dtype:
    """Write the language model; the precision of the whole: as its configuration says, else as it is stored."""
    kind = family(config)
    known = {*AutoConfig.for_model(kind).to_dict(), *EARLIER} - {"architectures", "model_type", "transformers_version"}
    with pretrained.reading(str(source)):
        own = AutoConfig.for_model(kind, **{key: value for key, value in config.items() if key in known})
        dtype = own.dtype or next(iter(weights.values())).dtype
        with torch.device("meta"):
            lm = AutoModelForCausalLM.from_config(own, dtype=dtype)
    if own.tie_word_embeddings and "model.embed_tokens.weight" in weights:
        weights = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}
    _save(source, lm, weights, dtype, target)
    return dtype


def _tokenizer(source: Path, target: Path) -> Any:
    """The tokenizer of a folder, read beside the language model's own configuration: LLaVA's names are not known."""
    for pattern in WORDS:
        for place in source.glob(pattern):
            shutil.copyfile(place, target / place.name)
    try:
        return AutoTokenizer.from_pretrained(target)
    except Exception as err:  # every library below it has its own
        reason = (str(err).strip() or type(err).__name__).splitlines()[0]
        alone = (target / "tokenizer.model").exists() and not (target / "tokenizer.json").exists()
        fix = "pip install sentencepiece protobuf, which read a tokenizer.model" if alone else WHOLE
        raise RunError(f"cannot load the tokenizer of {source}: {reason}", at=str(source), fix=fix) from err


def _vision(
    source: Path, tower: Path, config: Mapping[str, Any], inside: Weights, dtype: torch.dtype, target: Path
) -> tuple[HFVision, Card]:
    """Write the vision tower, with the weights inside the folder where it has any, else with its own."""
    with pretrained.reading(str(tower)):
        about = AutoConfig.from_pretrained(tower)
        with torch.device("meta"):
            model = AutoModel.from_config(getattr(about, "vision_config", about), dtype=dtype)
        AutoImageProcessor.from_pretrained(tower).save_pretrained(target)
    if inside:
        _save(source, model, inside, dtype, target)
    else:
        own = pretrained.whole(str(tower), AutoModel)
        _save(tower, model, getattr(own, "vision_model", own).state_dict(), dtype, target)
    args: dict[str, Any] = {"layer": config["mm_vision_select_layer"], "pil": True}  # LLaVA's pictures are Pillow's
    args |= {"fit": "pad"} if config.get("image_aspect_ratio") == "pad" else {}
    return HFVision(str(target), **args), Card(str(source), "mmalign.vision.hf.HFVision", args)


def _adapter(source: Path, weights: Weights, layers: int, vision: HFVision, width: int) -> Adapter:
    if layers == 0:
        _check(source, {}, weights)
        return Identity(vision.dim, width, vision.grid)
    adapter = MLP(vision.dim, width, vision.grid, layers)
    named = projectors.named_layers(weights, source) if weights else projectors.read(str(source))
    projectors.put_into(adapter, named, str(source))
    return adapter


def _save(source: Path, model: Any, weights: Weights, dtype: torch.dtype, target: Path) -> None:
    """A model without memory and its weights, all of them."""
    _check(source, model.state_dict(), weights)
    model.save_pretrained(target, state_dict={name: value.to(dtype).contiguous() for name, value in weights.items()})


def _check(source: Path, wanted: Mapping[str, Tensor], weights: Weights) -> None:
    """Raise RunError where weights are not those of a model, name by name and shape by shape."""
    wrong = {
        "lacks": sorted(wanted.keys() - weights.keys()),
        "has, and no part of mmalign has a place for,": sorted(weights.keys() - wanted.keys()),
        "has, in another shape,": sorted(n for n in wanted.keys() & weights if wanted[n].shape != weights[n].shape),
    }
    for what, names in wrong.items():
        if names:
            said = f"cannot import {source}: it {what} {len(names)} weights, such as {names[0]}"
            raise RunError(said, at=str(source), fix=WHOLE)
