"""The card of a language model, from the folder of its checkpoint: facts of config.json, weights that are counted."""

import os
from math import prod
from pathlib import Path
from typing import Any, TypedDict

from mmalign.errors import RunError
from mmalign.io import document, files, templates, yaml
from mmalign.io.document import Count
from mmalign.plan import checkpoints, fact_types

FIX = "a folder with config.json, tokenizer and *.safetensors, as transformers saves a language model"
TARGET = "mmalign.llms.causal.CausalLM"
NAMES = checkpoints.NAMES["llms"]
NEEDED = ("family", "dim", "layers", "vocab")
HEAD = "lm_head.weight"
HEADER_BYTES = 1 << 27  # of a safetensors file: more is none
FLOATS = {"F64", "F32", "F16", "BF16"}


class Weight(TypedDict):
    """Of one weight, in the head of a safetensors file."""

    dtype: str
    shape: list[Count]


def write(name: str, source: Path, folder: Path) -> tuple[Path, list[str]]:
    """(the card `llms/NAME.yaml` in a folder of cards, notes for whoever goes on from it).

    source: the checkpoint's folder. A template of theirs that marks no answers is put beside the card, or ours is named
    where that renders the same. Nothing that exists is touched; a RunError for what is no language model's folder.
    """
    place = folder / "llms" / f"{name}.yaml"
    beside = place.with_suffix(".jinja")
    for one in (place, beside):
        if one.exists():
            raise RunError(f"{one} is there already", at=str(one), fix="another name, or another DIR")
    facts, args = _facts(source), {"checkpoint": _from(place.parent, source)}
    text, words = _template(source)
    note, card = "", {"summary": f"{facts['family']}, from {source.resolve().name}", "target": TARGET}
    if text is None:
        note = f"{source} has no chat template: name one in the card, args: {{template: ./mine.jinja}}"
    else:
        from mmalign.llms import formats

        if not templates.marks_answers(text):
            like = formats.ours(text, words, str(source))
            args["template"] = f"pkg:mmalign.llms/templates/{like.name}" if like else f"./{beside.name}"
            note = "" if like else f"{beside}: {formats.UNMARKED}"
            if like is None:
                files.write(beside, text)
    files.write(place, yaml.dump({**card, "args": args, "facts": facts}))
    return place, [note] if note else []


def _from(folder: Path, source: Path) -> str:
    """A path as a card in a folder has it."""
    path = os.path.relpath(source.absolute(), folder.absolute())
    return path if path.startswith("..") else f"./{path}"


def _facts(source: Path) -> dict[str, Any]:
    config = _json(source, "config.json")
    if config is None:
        what = f"{source} is a file" if source.is_file() else f"there is no config.json in {source}"
        fix = f"mmalign import {source} DIR, and --from DIR" if source.suffix == ".gguf" else FIX
        raise RunError(what, at=str(source), fix=fix)
    at = str(source / "config.json")
    if whole := [key for key in ("text_config", "vision_config") if key in config]:
        raise RunError(f"{source} is no language model alone: it has a {whole[0]}", at=at, fix=FIX)
    told = {fact: config[key] for fact, keys in NAMES.items() for key in keys if config.get(key) is not None}
    if lacking := [NAMES[fact][0] for fact in NEEDED if fact not in told]:
        raise RunError(f"{source} has no {lacking[0]} in its config.json", at=at, fix=FIX)
    if wrong := fact_types.problem("llms", told):
        raise RunError(f"{source}: {checkpoints.NAMES['llms'][wrong[0]][0]} {wrong[1]}", at=at, fix=FIX)
    told.setdefault("kv_heads", told.get("heads", 1))
    if told.get("head_dim", 0) * told.get("heads", 0) == told["dim"]:
        del told["head_dim"]
    if weights := _weights(source):
        told["tied"] = told.get("tied", HEAD not in weights)
        told["parameters"] = sum(size for key, size in weights.items() if not (told["tied"] and key == HEAD))
    return {key: told[key] for key in [*NAMES, "parameters"] if key in told}


def _weights(source: Path) -> dict[str, int]:
    """{weight: how many numbers}, from the heads of the files; empty where they are no safetensors, or quantised."""
    about = {name: one for place in sorted(source.glob("*.safetensors")) for name, one in _header(place).items()}
    known = all(dtype in FLOATS for dtype, _ in about.values())
    return {name: prod(shape) for name, (_, shape) in about.items()} if known else {}


def _header(place: Path) -> dict[str, tuple[str, list[int]]]:
    """{weight: (type, shape)} of a safetensors file; a RunError for what is none."""
    with open(place, "rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        text = opened.read(size) if size <= HEADER_BYTES else b""
    what = f"{place} is no safetensors file"
    try:
        header = document.parse(text, str(place), RunError, FIX, depth=None)
    except RunError as err:
        raise RunError(what, at=str(place), fix=FIX) from err
    document.fit(header, dict[str, Weight | dict[str, str]], str(place), RunError, FIX)
    return {name: (one["dtype"], one["shape"]) for name, one in header.items() if name != "__metadata__"}


def _template(source: Path) -> tuple[str | None, dict[str, Any]]:
    """(a checkpoint's chat template, its special tokens by name)."""
    about = _json(source, "tokenizer_config.json") or {}
    words = {key: token.get("content") if isinstance(token, dict) else token for key, token in about.items()
             if key.endswith("_token") and isinstance(token, (str, dict))}  # fmt: skip
    place = source / "chat_template.jinja"
    if place.is_file():
        return place.read_text(encoding="utf-8"), words
    own = about.get("chat_template")
    if isinstance(own, list):  # several, by name
        named = (one for one in own if isinstance(one, dict) and one.get("name") == "default")
        own = next((one.get("template") for one in named), None)
    if not isinstance(own, str | None):
        raise RunError(f"the chat template in {source}/tokenizer_config.json is no text", at=str(source), fix=FIX)
    return own, words


def _json(source: Path, name: str) -> dict[str, Any] | None:
    place = source / name
    return files.read_json(place, fix=FIX, kind=dict[str, Any]) if place.is_file() else None
