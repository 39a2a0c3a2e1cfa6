"""Builds the parts a stage names, with the weights of the stages it reads."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmalign.adapters import Adapter
from mmalign.data import Data
from mmalign.errors import CardError, RunError
from mmalign.labels import LabelSource
from mmalign.llms import LLM
from mmalign.pipeline.existing import WHOLE
from mmalign.pipeline.task import Task, done
from mmalign.plan import cards
from mmalign.plan.cards import Card
from mmalign.vision import Vision
from mmalign.vlm.model import VLM

T = TypeVar("T")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def places(task: Task) -> dict[str, str]:
    """{part: weights, relative to the runs folder} of the stages a task reads; a part nobody trained is not in it."""
    found: dict[str, str] = {}
    for slot in ("vision", "llm", "weights"):
        if (parent := task.parent(slot)) is not None:
            found |= done(parent).get("parts", {})
    return found


def vlm(task: Task) -> VLM:
    """The model of a task, with the weights of the stages it reads; a new adapter is drawn from the recipe's seed."""
    if WHOLE in task.cards:  # a checkpoint that no stage here made, see pipeline/existing.py
        model: VLM = cards.build(task.cards[WHOLE])
        return model
    weights, runs = places(task), task.folder.parent
    encoder = vision(task, "vision", weights, runs)
    language = llm(task, weights, runs)
    torch.manual_seed(task.seed)  # every arm of a study begins with the same adapter
    card = task.cards["adapter"]
    adapter: Adapter = cards.build(card, patch_dim=encoder.dim, llm_dim=language.dim, grid=encoder.grid)
    if "adapter" in weights:
        adapter.load_state_dict(_weights(runs / weights["adapter"]))
    return VLM(encoder, adapter, language)


def _weights(place: Path) -> dict[str, Tensor]:
    """The tensors of a file another stage wrote."""
    try:
        found: dict[str, Tensor] = load_file(place)
        return found
    except (OSError, SafetensorError) as err:
        fix = f"run that stage again: --force its name, which stands in {place.parent.parent}/stage.json"
        raise RunError(f"cannot read the weights {place.name}: {err}", at=str(place), fix=fix) from err


def vision(task: Task, role: str, where: dict[str, str], runs: Path) -> Vision:
    """The encoder of a role; one that wraps another is handed it."""
    card = _without_inner(task.cards[role])
    if f"{role}.encoder" in task.cards:
        return _checked(cards.build(card, encoder=vision(task, f"{role}.encoder", where, runs)), Vision, card)
    if "vision" in where and _same(task, role):
        card = replace(card, args={**card.args, "checkpoint": str(runs / where["vision"])})
    return _checked(cards.build(card), Vision, card)


def _same(task: Task, role: str) -> bool:
    """Whether a role's encoder is the model's own, so that it takes the weights a stage trained for it."""
    own = task.cards.get("vision")
    return role.partition(".")[0] == "vision" or own is None or own.name == task.cards[role].name


def llm(task: Task, where: dict[str, str], runs: Path) -> LLM:
    card = task.cards["llm"]
    if "llm" in where:
        card = replace(card, args={**card.args, "checkpoint": str(runs / where["llm"])})
    return _checked(cards.build(card), LLM, card)


def data(card: Card) -> Data:
    return _checked(cards.build(card), Data, card)


def labels(task: Task, keep: int, encoder: Vision | None) -> LabelSource:
    """The label source of a task; `encoder` is handed over where its card names one."""
    card = _without_inner(task.cards["labels"])
    more: dict[str, Any] = {"encoder": encoder} if encoder is not None else {}
    return _checked(cards.build(card, keep=keep, **more), LabelSource, card)


def _without_inner(card: Card) -> Card:
    return replace(card, args={k: v for k, v in card.args.items() if k != "encoder"})


def _checked(made: Any, kind: type[T], card: Card) -> T:
    if not isinstance(made, kind):
        what = f"{card.name!r} is a {type(made).__name__}, not a {kind.__module__}.{kind.__name__}"
        raise CardError(what, at=card.path, fix=f"a {card.family} part subclasses {kind.__name__}")
    return made


def cast_all(precision: str, *modules: nn.Module | None) -> None:
    """Every module in the stage's precision."""
    for module in modules:
        if module is not None:
            module.to(DTYPES[precision])
