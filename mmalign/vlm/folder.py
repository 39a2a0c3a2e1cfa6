"""A model as a folder: vision/, llm/, adapter.safetensors, and mmalign.json, which names the cards that read them.

Written for models that plain transformers has no class for; read by `mmalign.load` where mmalign is installed.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmalign.adapters import Adapter
from mmalign.errors import RunError
from mmalign.io import files, sums
from mmalign.llms import LLM
from mmalign.plan import building, cards, exported
from mmalign.plan.cards import Card, as_dict
from mmalign.plan.exported import AGAIN, FORMAT, ROLES
from mmalign.vision import Vision
from mmalign.vlm.model import VLM

NAMES = ("_name_or_path", "name_or_path")
MACHINE = r"(~?/|[A-Za-z]:[\\/]|file:/)[\w.@+ -]+[\\/]"  # how a path of a machine begins, in a folder of it


def save(folder: Path, vlm: VLM, named: Mapping[str, Card]) -> None:
    """Write a model into a new folder. named: the cards of its parts, by role: vision, adapter, llm, vision.encoder."""
    assert vlm.vision is not None
    assert vlm.adapter is not None
    folder.mkdir(parents=True)
    vlm.vision.save(folder / "vision")
    vlm.llm.save(folder / "llm")
    write(folder, vlm.adapter, named)


def write(folder: Path, adapter: Adapter, named: Mapping[str, Card]) -> None:
    """adapter.safetensors, mmalign.json and SHA256SUMS, into a folder that has vision/ and llm/."""
    weights = {name: value.detach().cpu().contiguous() for name, value in adapter.state_dict().items()}
    save_file(weights, folder / "adapter.safetensors")
    roles = ("vision", "vision.encoder", "adapter", "llm")
    written = {role: _portable(named[role]) for role in roles if role in named}
    written["adapter"]["args"].pop("checkpoint", None)  # what it began with
    files.write_json(folder / "mmalign.json", {"format": FORMAT, "cards": written})
    forget_paths(folder)
    sums.write(folder)


def _portable(card: Card) -> dict[str, Any]:
    """A card without the paths of the machine it is written on; `read` gives checkpoints those of the folder."""
    args = dict(card.args)
    if _of_this_machine(args.get("checkpoint")):
        del args["checkpoint"]
    if _of_this_machine(args.get("template")):
        args["template"] = Path(args["template"]).read_text(encoding="utf-8")
    origin = "shelf" if card.origin.startswith("shelf ") else card.origin
    return as_dict(replace(card, args=args, origin=origin, path=""))


def _of_this_machine(value: Any) -> bool:
    return isinstance(value, str) and Path(value).is_absolute()


def forget_paths(folder: Path) -> None:
    """Take out of a folder's JSON files where transformers says the parts were loaded from, and settings that are
    paths of a machine. A vocabulary may have words that look so, and mmalign.json says what it needs."""
    for place in folder.rglob("*.json"):
        if place.name not in ("tokenizer.json", "vocab.json", "mmalign.json"):
            about = json.loads(place.read_bytes())
            if (nameless := _nameless(about)) != about:
                files.write(place, json.dumps(nameless, indent=2, ensure_ascii=False) + "\n")


def _nameless(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if key not in NAMES and not is_of_machine(inner)}
        return {key: _nameless(inner) for key, inner in kept.items()}
    return [_nameless(inner) for inner in value] if isinstance(value, list) else value


def is_of_machine(value: Any) -> bool:
    return isinstance(value, str) and bool(re.match(MACHINE, value))


def read(folder: str | Path, named: Mapping[str, Card] | None = None) -> VLM:
    """The model in a folder that `save` wrote, in eval mode and in the precision it is stored in.

    named: the cards it was saved with, of whoever has them; None: as its mmalign.json says.
    Raises RunError for anything else, Damaged for a file that its SHA256SUMS does not know, CardError for a part that
    is damaged, or whose class is none that the registry knows (plan/trust.py), said before any weights are read.
    """
    place = Path(folder)
    with sums.verifying(sums.read(place), sums.AGAIN):
        vlm = build(named or exported.cards(place), place).eval()
        assert vlm.adapter is not None
        _fill(vlm.adapter, place / "adapter.safetensors")
    return vlm


def build(named: Mapping[str, Card], place: Path | None = None) -> VLM:
    """The model of some cards, by role; `place`: with the checkpoints of that folder. The adapter is new."""
    named = {role: replace(card, family=ROLES[role.split(".")[0]]) for role, card in named.items()}
    innermost = max((role for role in named if role.startswith("vision")), key=len)
    if place is not None:
        named |= {role: _from(named[role], place / role.split(".")[0]) for role in (innermost, "llm")}
    vision: Vision = building.build(named["vision"], inner=cards.inside("vision", named))
    llm: LLM = building.build(named["llm"])
    adapter: Adapter = building.build(named["adapter"], patch_dim=vision.dim, llm_dim=llm.dim, grid=vision.grid)
    return VLM(vision, adapter, llm)


def _from(card: Card, checkpoint: Path) -> Card:
    return replace(card, args={**card.args, "checkpoint": str(checkpoint)})


def _fill(adapter: Adapter, place: Path) -> None:
    """Put the weights of a file into an adapter, in the precision they are stored in."""
    try:
        weights = load_file(place)
        adapter.to(next((value.dtype for value in weights.values()), None)).load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as err:
        what = f"cannot read the adapter {place}: {' '.join(str(err).split())}"
        raise RunError(what, at=str(place), fix=AGAIN) from err
