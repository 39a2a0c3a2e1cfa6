"""A vision-language model of transformers as a recipe names it: loaded by its checkpoint, trained by parts, written.

model: {vlm: qwen2.5-vl-3b}
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.errors import RunError
from mmalign.integrations.asking import Asking
from mmalign.integrations.partition import partition
from mmalign.integrations.teaching import Teaching
from mmalign.integrations.whole import WholeVLM, hollow, loaded
from mmalign.io import pretrained
from mmalign.llms import watch
from mmalign.llms.attending import attend

__all__ = ["Checkpoint", "hollow"]

AGAIN = "run the stage that wrote them again: --force its name"


class Checkpoint(WholeVLM):
    """A model that AutoModelForImageTextToText loads. checkpoint: a hub id, or a folder with its processor.

    Its parts are told by what transformers declares of it, see partition.py. Raises CheckError for a family that
    declares too little, before any weight is read, and RunError for what transformers cannot load.
    """

    checkpoints = "transformers"

    def __init__(self, checkpoint: str) -> None:
        super().__init__(*loaded(checkpoint))
        self.checkpoint = checkpoint
        # of rotary positions; they stay in fp32, as transformers has them, whatever the weights are cast to
        named = (
            (module, name, own) for module in self.whole.modules() for name, own in module.named_buffers("", False)
        )
        self._frequencies = [row for row in named if row[1].endswith("inv_freq")]
        self._owners: dict[str, list[tuple[str, nn.Parameter]]] | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Checkpoint":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for module, name, own in self._frequencies:
            setattr(module, name, own.to(getattr(module, name).device))
        return self

    # Training: which parts learn

    @property
    def parts_of(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """{part: (name in the whole model, parameter) of all that is in it}."""
        if self._owners is None:
            self._owners = partition(self._parts)
        return self._owners

    def parameters_of(self, part: str) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.parts_of[part]]

    def freeze_all_but(self, trained: Iterable[str]) -> None:
        self.trained = tuple(trained)
        for part, own in self.parts_of.items():
            for _, parameter in own:
                parameter.requires_grad_(part in self.trained)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Checkpoint":
        super().train(mode)
        if "vision" not in self.trained:
            self.whole.get_encoder(modality="image").eval()
        return self

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        pretrained.recompute(self.whole)

    def attend(self, kind: str) -> None:
        """By which kernel its language model computes attention, see attending.py."""
        attend(self.llm.body, kind)

    def compile_layers(self) -> None:
        """Have torch compile the layers of its language model, in passes with a gradient."""
        pretrained.compile_layers(watch.layers(self.llm.body), torch.compile, torch.is_grad_enabled)

    @property
    def asking(self) -> Asking:
        """How it is asked."""
        return self._asking

    @cached_property
    def teaching(self) -> Teaching:
        """How conversations become its batches. CheckError for a chat format that does not say what an answer is."""
        return Teaching(self._parts, self.llm.chat)

    # Weights

    @torch.no_grad()
    def put(self, state: Mapping[str, Tensor]) -> None:
        """Weights of some parameters, by their names in the whole model, in place of its own. RunError for others."""
        own = dict(self.whole.named_parameters())
        for name, value in state.items():
            if name not in own or own[name].shape != value.shape:
                what = f"weights of {name}, {tuple(value.shape)}, and {self.checkpoint} has none such"
                raise RunError(what, at=self.checkpoint, fix=AGAIN)
            own[name].copy_(value)

    def write(self, folder: Path) -> None:
        """A checkpoint of the model's own class, with its processor, as plain transformers reads it."""
        whole: Any = self.whole
        whole.save_pretrained(folder)
        self.processor.save_pretrained(folder)
