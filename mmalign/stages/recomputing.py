"""Whether a stage makes its activations again in the backward pass: the same on all ranks, and told in its log."""

from collections.abc import Sequence
from typing import Protocol

from mmalign.errors import CardError
from mmalign.pipeline.task import Task
from mmalign.plan import estimate
from mmalign.plan.recipe import Language, Train
from mmalign.training.engine import memory, world
from mmalign.training.events import Events


class Recomputes(Protocol):
    """A language model, a vision encoder, or a whole model."""

    def checkpoint_activations(self) -> None: ...


def decide(task: Task, stage: Train | Language, parts: Sequence[Recomputes], events: Events) -> bool:
    """Have parts of a model recompute where `engine.checkpointing` comes to that here; returns whether it does.

    A part that cannot is an error where it was asked for, and keeps its activations under `auto`.
    """
    auto = stage.engine.checkpointing == "auto"
    recomputed, why = estimate.recomputing(stage, task.cards, world()[1], memory())
    if auto:
        events.say(f"activations are {'recomputed' if recomputed else 'kept'}: {why}   (checkpointing: auto)")
    for part in parts if recomputed else ():
        try:
            part.checkpoint_activations()
        except (CardError, NotImplementedError) as err:
            if not auto:
                raise
            reason = err.what if isinstance(err, CardError) else f"{type(part).__name__} cannot recompute them"
            events.say(f"activations are kept after all: {reason}")
    return recomputed
