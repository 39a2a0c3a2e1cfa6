"""Layers that torch compiles, where a stage asks for it: `engine.compile`."""

import torch

from mmalign.errors import CheckError
from mmalign.integrations.checkpoint import Checkpoint
from mmalign.llms import UNCOMPILED
from mmalign.plan.recipe import Language, Train
from mmalign.training.engine import device
from mmalign.training.events import Events
from mmalign.vlm.model import VLM


def check(stage: Train | Language) -> None:
    """Before any weight is read: a CheckError where torch cannot compile here, as without a compiler."""
    if not stage.engine.compile:
        return
    try:
        torch.compile(_trial)(torch.ones(2, device=device()))
    except Exception as err:  # of a compiler, of Triton, or of what starts them
        reason = (str(err).strip() or type(err).__name__).splitlines()[0]
        fix = f"install a C++ compiler (g++; CXX names another), or {UNCOMPILED}"
        raise CheckError(f"torch.compile does not work here: {reason[:300]}", at="engine.compile", fix=fix) from err


def _trial(ones: torch.Tensor) -> torch.Tensor:
    return (ones * 2).sin()


def apply(stage: Train | Language, vlm: VLM | Checkpoint, events: Events) -> None:
    """Compile the layers of the model's parts, and say of which."""
    if not stage.engine.compile:
        return
    if isinstance(vlm, Checkpoint):
        vlm.compile_layers()
        events.say("compiled: the layers of the language model")
        return
    vlm.llm.compile_layers()
    also = vlm.vision is not None and vlm.vision.compile_layers()
    events.say(f"compiled: the layers of the language model{' and of the vision encoder' * also}")
