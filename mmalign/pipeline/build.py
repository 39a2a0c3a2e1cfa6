"""Builds the parts a stage names, with the weights of the stages it reads."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmalign.adapters import Adapter
from mmalign.data import Data
from mmalign.errors import RunError
from mmalign.llms import LLM
from mmalign.pipeline import weights
from mmalign.pipeline.existing import WHOLE
from mmalign.pipeline.task import Task
from mmalign.plan import building, cards
from mmalign.plan.cards import Card
from mmalign.vision import Vision
from mmalign.vlm.model import VLM

if TYPE_CHECKING:
    from mmalign.integrations.checkpoint import Checkpoint

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def vlm(task: Task) -> VLM:
    """The model of a task, with the weights of the stages it reads; a new adapter is drawn from the recipe's seed.

    A language model alone where the task has no encoder.
    """
    if WHOLE in task.cards:  # a checkpoint that no stage here made, see pipeline/existing.py
        model: VLM = building.build(task.cards[WHOLE])
        return model
    trained, runs = weights.places(task), task.folder.parent
    if "vlm" in task.cards:
        return _whole(task.cards["vlm"], trained, runs)
    with weights.verified(runs, trained.values()):
        if "vision" not in task.cards:
            return VLM(None, None, llm(task, trained, runs))
        encoder = vision(task, "vision", trained, runs)
        language = llm(task, trained, runs)
        torch.manual_seed(task.seed)  # every arm of a study begins with the same adapter
        card = task.cards["adapter"]
        adapter: Adapter = building.build(card, patch_dim=encoder.dim, llm_dim=language.dim, grid=encoder.grid)
        if "adapter" in trained:
            adapter.load_state_dict(_weights(runs / trained["adapter"]))
    return VLM(encoder, adapter, language)


def _whole(card: Card, trained: Mapping[str, str], runs: Path) -> VLM:
    """A whole model of transformers, with the weights of its parts that stages trained."""
    with weights.verified(runs, trained.values()):
        model: Checkpoint = building.build(card)
        for place in trained.values():
            model.put(_weights(runs / place))
    return model


def _weights(place: Path) -> dict[str, Tensor]:
    """The tensors of a file another stage wrote."""
    try:
        tensors: dict[str, Tensor] = load_file(place)
        return tensors
    except (OSError, SafetensorError) as err:
        fix = f"run that stage again: --force its name, which stands in {place.parent.parent}/stage.json"
        raise RunError(f"cannot read the weights {place.name}: {err}", at=str(place), fix=fix) from err


def vision(task: Task, role: str, trained: Mapping[str, str], runs: Path) -> Vision:
    """The encoder of a role, those inside it too; weights that a stage trained go into the innermost."""
    named = {role: task.cards[role], **cards.below(role, cards.inside(role, task.cards))}
    innermost = max(named, key=len)
    own = [trained["vision"]] if "vision" in trained and _same(task, innermost) else []
    with weights.verified(runs, own):
        for place in own:
            named[innermost] = _from(named[innermost], runs / place)
        encoder: Vision = building.build(named[role], inner=cards.inside(role, named))
    return encoder


def _same(task: Task, role: str) -> bool:
    """Whether a role's encoder is the model's own, so that it takes the weights a stage trained for it."""
    own = task.cards.get("vision")
    if "vlm" in task.cards:
        return False
    return role.partition(".")[0] == "vision" or own is None or own.name == task.cards[role].name


def llm(task: Task, trained: Mapping[str, str], runs: Path) -> LLM:
    card = task.cards["llm"]
    own = [trained["llm"]] if "llm" in trained else []
    with weights.verified(runs, own):
        language: LLM = building.build(_from(card, runs / own[0]) if own else card)
    return language


def _from(card: Card, checkpoint: Path) -> Card:
    """The card with weights that a stage saved."""
    return replace(card, args={**card.args, "checkpoint": str(checkpoint)})


def data(card: Card) -> Data:
    dataset: Data = building.build(card)
    return dataset


def in_precision(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights in a precision; those held in 4 or 8 bits, which are whole numbers, as they are."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}


def cast_all(precision: str, *modules: nn.Module | None) -> None:
    """Every module in the stage's precision; a model inside one that transformers has quantised stays as it is, for the
    scales beside weights of 8 bits say nothing of the same weights in 16."""
    for module in modules:
        if module is None or getattr(module, "hf_quantizer", None) is not None:
            continue
        if any(getattr(one, "hf_quantizer", None) is not None for one in module.modules()):
            cast_all(precision, *module.children())
        else:
            module.to(DTYPES[precision])
