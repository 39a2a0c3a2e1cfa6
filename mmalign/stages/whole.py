"""The training of a whole model of transformers: its passes, its loss and objectives, and the weights written of it.

Its loss and its objectives are those of `mmalign.supervise`, see integrations/supervising.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from mmalign.data import MARK, Data, Turn
from mmalign.errors import CheckError, DataError
from mmalign.integrations import shown
from mmalign.integrations.checkpoint import Checkpoint, hollow
from mmalign.integrations.supervising import SupervisedWhole
from mmalign.integrations.teaching import Row, Teaching
from mmalign.objectives import Objective
from mmalign.pipeline import build
from mmalign.pipeline.build import DTYPES
from mmalign.pipeline.task import Task
from mmalign.plan import building, facts
from mmalign.plan.recipe import Train
from mmalign.stages import label
from mmalign.stages.supply import spelled
from mmalign.training.batches import BadSamples
from mmalign.training.engine import Engine, device, world
from mmalign.training.events import Events
from mmalign.vision.picture import upright_size
from mmalign.vlm.batch import IGNORED
from mmalign.vlm.supervised import PassLabels

# A picture that is there where a pass has none, and a conversation about it
BLANK, ABOUT = Image.new("RGB", (32, 32)), [Turn("user", f"{MARK}\nx"), Turn("assistant", "x", 0.0)]


@dataclass
class WholeBatch:
    """A pass: a batch of the model's own processor, with labels. images: of its samples."""

    inputs: dict[str, Tensor]
    images: int = 0
    seed: int = 0  # of this pass's random numbers
    ids: list[str] = field(default_factory=list)  # the samples' ids
    cuts: dict[str, int] = field(default_factory=dict)  # {what was cut at max_length: how much}; empty: nothing

    @property
    def units(self) -> dict[str, float]:
        """How much of each unit this pass holds, known before it runs."""
        return {"tokens": float((self.inputs["labels"][:, 1:] != IGNORED).sum()), "images": float(self.images)}

    def to(self, where: torch.device) -> "WholeBatch":
        return replace(self, inputs={name: own.to(where, non_blocking=True) for name, own in self.inputs.items()})


@dataclass
class WholeCollate:
    """Records to passes, by the model's own chat format and processor.

    blank: whether a pass without images is shown a blank one, which is no image of the pass and whose answer is not
    trained: where what makes visual tokens learns, so that no rank waits for another.
    """

    data: Data
    teaching: Teaching
    max_length: int
    bad: BadSamples
    blank: bool

    def batch(self, numbers: Sequence[int], seed: int) -> WholeBatch:
        """The samples of these numbers, unusable ones left out; right padding."""
        rows = [(number, row) for number in numbers if (row := self._row(number))]
        while True:
            own = [row for _, row in rows]
            more = self._blank(own)
            taught = self.teaching.batch([*own, *more], self.max_length)
            if not taught.refused:
                break
            for place, why in taught.refused.items():
                if place >= len(rows):
                    raise why
                self.bad.add(self.data.id_of(rows[place][0]), why.what)
            rows = [pair for place, pair in enumerate(rows) if place not in taught.refused]
        sizes = [upright_size(image) for row in [*own, *more] for image in row.images]
        if sizes:
            taught.inputs["picture_sizes"] = torch.tensor([(height, width) for width, height in sizes])
        cuts = {"cut_samples": sum(map(bool, taught.lost)), "cut_tokens": sum(taught.lost)} if any(taught.lost) else {}
        images = sum(len(row.images) for row in own)
        return WholeBatch(taught.inputs, images, seed, [self.data.id_of(number) for number, _ in rows], cuts)

    def _row(self, number: int) -> Row | None:
        try:
            record = self.data[number]
            return self.teaching.row(record.turns, [self.data.image(reference) for reference in record.images])
        except DataError as err:
            self.bad.add(self.data.id_of(number), err.what)
            return None

    def _blank(self, rows: Sequence[Row]) -> list[Row]:
        """A row that is read and not trained, where there is no other, or none with an image."""
        if self.blank and not any(row.images for row in rows):
            return [replace(self.teaching.row(ABOUT, [BLANK]), idle=True)]
        return [] if rows else [replace(self.teaching.row([Turn("user", "x"), ABOUT[-1]], []), idle=True)]


class WholeSupervised(SupervisedWhole):
    """A whole model and its objectives, called with a pass of the training loop."""

    def __init__(self, vlm: Checkpoint, objectives: dict[str, Objective], labels: PassLabels | None) -> None:
        super().__init__(vlm.whole, vlm.processor, objectives, dict.fromkeys(objectives, 1.0), None)
        self.vlm, self._labels = vlm, (labels,)
        self._notes = dict[str, Tensor]()
        for objective in self.objectives.values():
            objective.register_forward_hook(lambda module, args, out: self._notes.update(args[0].notes))

    def forward(self, batch: WholeBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # type: ignore[override]
        """({objective: its mean over this pass}, {note: number}); scalars."""
        self._notes.clear()
        dtype = next(self.vlm.parameters()).dtype
        inputs: dict[str, Any] = {
            n: own.to(dtype) if own.is_floating_point() else own for n, own in batch.inputs.items()
        }
        terms = super().forward(**inputs)
        self.means.sums.clear()  # the loop's own log has them
        return {name: terms[name].float() for name in self.objectives}, dict(self._notes)

    @property
    def names(self) -> dict[int, str]:
        """{id of a parameter: vlm.PART. and its name in the whole model}"""
        vlm = cast(Checkpoint, self.vlm)
        return {id(parameter): f"vlm.{part}.{name}" for part, own in vlm.parts_of.items() for name, parameter in own}


def known(task: Task) -> None:
    """Before any weight is read: a CheckError for objectives of single patches where nobody knows how these lie."""
    for role, card in task.cards.items():
        checkpoint = task.cards["vlm"].args.get("checkpoint")
        if role.startswith("objectives.") and "labels" in facts.of(card).get("needs", []) and checkpoint:
            parts = hollow(str(checkpoint))
            if not shown.known(parts):
                kind = parts.model.config.model_type
                what = f"{card.name} supervises single patches, and where those of a {kind} model lie is not known"
                raise CheckError(what, at=role, fix="basic-direction or basic-distribution")


def model(task: Task, stage: Train, vlm: Checkpoint, data: Data, events: Events) -> WholeSupervised:
    """What the stage trains, ready to learn."""
    objectives = {name: cast(Objective, building.build(task.cards[f"objectives.{name}"])) for name in stage.objectives}
    vlm.attend(stage.engine.attention)
    own = WholeSupervised(vlm, objectives, _labels(task, stage, vlm, data, events))
    build.cast_all(stage.precision, own)
    own.to(device())
    own.freeze_all_but(stage.trains)
    if own.looks:
        events.say("BASIC's premise is not looked at in a whole model")
    return own


def _labels(task: Task, stage: Train, vlm: Checkpoint, data: Data, events: Events) -> PassLabels | None:
    if stage.labels is None:
        return None
    source, encoder = label.source(task, stage.labels.keep, data, events)
    return PassLabels(spelled(source.words, vlm, events), source, encoder)


def collate(task: Task, stage: Train, vlm: Checkpoint, data: Data) -> WholeCollate:
    bad = BadSamples.of(int(stage.max_bad * len(data)), task.folder)
    return WholeCollate(data, vlm.teaching, stage.max_length, bad, bool({"vision", "adapter"} & set(stage.trains)))


def save(task: Task, stage: Train, engine: Engine, model: WholeSupervised) -> dict[str, str]:
    """What was trained of each part, by the names of the whole model, and what objectives own, each in a file of its
    own; {part: place relative to the runs folder}."""
    vlm, trained = cast(Checkpoint, model.vlm), dict(_trained(engine, model))
    folder = task.folder / "weights"
    named: dict[str, dict[str, Tensor]] = {
        part: {name: trained[id(p)] for name, p in vlm.parts_of[part] if id(p) in trained} for part in stage.trains
    }
    named["objectives"] = engine.weights("objectives")
    for part, state in named.items():
        if state and not world()[0]:
            folder.mkdir(parents=True, exist_ok=True)
            state = state if part == "objectives" else build.in_precision(state, DTYPES[stage.precision])
            save_file({name: value.contiguous() for name, value in state.items()}, folder / _file(part))
    if world()[1] > 1:
        dist.barrier()
    return {part: f"{task.folder.name}/weights/{_file(part)}" for part in stage.trains}


def _file(part: str) -> Path:
    return Path(f"{part}.safetensors")


def _trained(engine: Engine, own: WholeSupervised) -> Iterator[tuple[int, Tensor]]:
    """(id of a parameter, its value) of what was trained."""
    parameters: dict[str, Any] = dict(own.named_parameters())
    yield from ((id(parameters[name]), value) for name, value in engine.state() if "/" not in name)
