"""Trains the vision encoder's CLIP from its configuration, on images and captions (arXiv 2103.00020)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer

from mmalign.data import Data
from mmalign.errors import CardError, DataError
from mmalign.io import files
from mmalign.objectives.contrast import bounded, info_nce, similarities
from mmalign.pipeline import build
from mmalign.pipeline.task import Task
from mmalign.plan.recipe import Contrast
from mmalign.training import optim
from mmalign.training.batches import Batches
from mmalign.training.engine import Engine, connect, world
from mmalign.training.events import Events
from mmalign.training.loop import Fit, Term
from mmalign.vision import hf
from mmalign.vision.hf import HFVision


@dataclass
class Pairs:
    """Images and their captions as one pass sees them."""

    pixels_B3SS: Tensor
    ids_BS: Tensor
    mask_BS: Tensor
    seed: int
    ids: list[str]

    cuts: ClassVar[dict[str, int]] = {}  # none is cut at a max_length of ours

    @property
    def units(self) -> dict[str, float]:
        return {"tokens": float(self.mask_BS.sum()), "images": float(len(self.pixels_B3SS))}

    def to(self, device: torch.device) -> "Pairs":
        names = ("pixels_B3SS", "ids_BS", "mask_BS")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


class Contrastive(nn.Module):
    """CLIP's symmetric loss over a pass; an image is the mean of its projected patches, or its class token."""

    def __init__(self, clip: Any, pool: str) -> None:
        super().__init__()
        self.clip, self.pool = clip, pool
        clip.logit_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))  # one dimension: see training/optim.py

    def forward(self, pairs: Pairs) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        image_BJ, text_BJ = self.images(pairs.pixels_B3SS), self.texts(pairs)
        alike_BB = similarities(image_BJ, text_BJ, bounded(self.clip.logit_scale))
        own_B = torch.arange(len(alike_BB), device=alike_BB.device)
        return {"contrast": info_nce(alike_BB)}, {"accuracy": (alike_BB.argmax(1) == own_B).float().mean()}

    def images(self, pixels_B3SS: Tensor) -> Tensor:
        tower = self.clip.vision_model
        hidden_BTC = tower(pixels_B3SS.to(self.clip.dtype)).last_hidden_state
        if self.pool == "cls":
            hidden_BC = tower.post_layernorm(hidden_BTC[:, 0])
            return F.normalize(self.clip.visual_projection(hidden_BC).float(), dim=-1)
        joint_BPJ = self.clip.visual_projection(tower.post_layernorm(hidden_BTC[:, 1:]))
        return F.normalize(joint_BPJ.float().mean(1), dim=-1)

    def texts(self, pairs: Pairs) -> Tensor:
        out = self.clip.text_model(input_ids=pairs.ids_BS, attention_mask=pairs.mask_BS)
        return F.normalize(self.clip.text_projection(out.pooler_output).float(), dim=-1)


@dataclass
class Reader:
    """Records to pairs."""

    data: Data
    vision: HFVision
    tokenizer: Any

    def batch(self, numbers: Sequence[int], seed: int) -> Pairs:
        records = [self.data[number] for number in numbers]
        if blind := [r.id for r in records if not r.images]:
            raise DataError(f"no image in {', '.join(blind[:3])}", fix="kind: contrast needs an image in every record")
        pixels = torch.stack([self.vision.pixels(self.data.image(r.images[0])) for r in records])
        text = self.tokenizer([r.caption for r in records], padding=True, truncation=True, return_tensors="pt")
        return Pairs(pixels, text["input_ids"], text["attention_mask"], seed, [r.id for r in records])


def run(task: Task) -> dict[str, Any]:
    stage = cast(Contrast, task.stage)
    connect()
    rank, ranks = world()
    card = task.cards["vision"]
    encoder = build.vision(task, "vision", {}, task.folder.parent)
    if not isinstance(encoder, HFVision):
        raise CardError(f"stage contrast trains CLIP models of transformers, not {card.target}", at=card.path)
    torch.manual_seed(task.seed)
    clip = hf.load(encoder.checkpoint, random=True)
    if not hasattr(clip, "visual_projection"):
        raise CardError(
            f"{encoder.checkpoint} is no CLIP model", at=card.path, fix="kind: contrast needs a CLIP config"
        )
    data = build.data(task.cards["data"])
    reader = Reader(data, encoder, AutoTokenizer.from_pretrained(files.path(encoder.checkpoint)))
    module = Contrastive(clip, stage.pool).to(build.DTYPES[stage.precision])
    groups = optim.groups(module.named_parameters(), stage.optim)
    # every image of a step is contrasted with every other, so a step is one pass of one device
    batch, workers = stage.batch, stage.engine.workers
    batches = Batches(cast(Any, reader), len(data), batch, batch, task.seed, rank, ranks, workers)
    engine = Engine(module, groups, stage.optim, stage.engine, stage.precision, stage.batch, 1)
    events = Events(task.folder, rank)
    fit = Fit(
        engine, _passes(batches, stage.steps), stage.steps, stage.optim, {"contrast": Term()}, task.folder, events,
        stage.engine.save_every, stage.log_every, skip=stage.on_nan == "skip", samples=batches.samples,
        keep=stage.engine.keep,
    )  # fmt: skip
    last = fit.run()
    for line in fit.warnings():
        events.say(line)
    _write(task, engine, clip, encoder, stage)
    return {"metrics": last, "warnings": fit.warnings(), "parts": {"vision": f"{task.folder.name}/weights/vision"}}


def _passes(batches: Batches, steps: int) -> Any:
    def run(start: int) -> Iterator[list[Any]]:
        yield from batches.run(start, steps)

    return run


def _write(task: Task, engine: Engine, clip: Any, encoder: HFVision, stage: Contrast) -> None:
    """The checkpoint, in bf16 or fp32 as trained, with the processor and tokenizer of its configuration."""
    state = {name: value.to(build.DTYPES[stage.precision]) for name, value in engine.weights("clip").items()}
    clip.logit_scale = nn.Parameter(state["logit_scale"].reshape(()))
    clip.load_state_dict({**state, "logit_scale": state["logit_scale"].reshape(())})
    hf.write_checkpoint(clip, encoder.checkpoint, task.folder / "weights" / "vision")
