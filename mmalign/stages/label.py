"""The labelling stage: images to words for every patch, on disk (SEA, section 4.1)."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from mmalign.data import Data
from mmalign.errors import DataError, StageError
from mmalign.io import files
from mmalign.labels import LabelSource, store
from mmalign.labels.store import Header, ShardFile
from mmalign.pipeline import build, weights
from mmalign.pipeline.task import Task
from mmalign.plan import building
from mmalign.plan.recipe import Label
from mmalign.training.engine import connect, device, world
from mmalign.training.events import Events
from mmalign.vision import Frame, Vision
from mmalign.vision.picture import upright_size
from mmalign.vlm import sampling

UNIT = "records"  # of which each may have several images, or none


def source(
    task: Task, keep: int, data: Data, events: Events, own: Vision | None = None
) -> tuple[LabelSource, Vision | None]:
    """The task's label source, ready to label, and its encoder.

    own: the model's encoder, used if it is the same; another one labels in fp32, whatever its checkpoint holds.
    """
    encoder = _encoder(task, own)
    handed: dict[str, Any] = {} if encoder is None else {"encoder": encoder}
    labels: LabelSource = building.build(task.cards["labels"], keep=keep, **handed)
    decided = labels.prepare(lambda: sampling.captions(data), lambda images: _sample(encoder, data, images))
    if decided:
        events.say("labels: " + ", ".join(f"{key} {value}" for key, value in decided.items()))
    return labels.to(device()), encoder


def _encoder(task: Task, own: Vision | None) -> Vision | None:
    """The encoder of the task's labels; None for a source that needs none."""
    if "labels.encoder" not in task.cards:
        return None
    shared = "vision" in task.cards and task.cards["labels.encoder"].name == task.cards["vision"].name
    if own is not None and shared:
        return own.to(device()).eval()
    encoder = build.vision(task, "labels.encoder", weights.places(task), task.folder.parent)
    return encoder.float().to(device()).eval()


def _sample(encoder: Vision | None, data: Data, images: int) -> list[tuple[Tensor, str]]:
    assert encoder is not None
    return sampling.sample(encoder, data, images)


@torch.no_grad()
def _dense(encoder: Vision, pixels_B3SS: Tensor) -> Tensor:
    return encoder.both(pixels_B3SS.to(device()))[1]


def run(task: Task) -> dict[str, Any]:
    stage = cast(Label, task.stage)
    connect()
    rank, ranks = world()
    events = Events(task.folder, rank)
    data = build.data(task.cards["data"])
    if not len(data):
        raise StageError("the data set is empty", at=task.cards["data"].path, fix="check its path and split")
    labels, encoder = source(task, stage.keep, data, events)
    grid = encoder.grid if encoder else (1, 1)
    header = Header(
        encoder=labels.identity(),
        words=store.words_hash(labels.words),
        grid=grid,
        keep=min(stage.keep, len(labels.words)),
        settings=task.cards["labels"].args,
        fit=encoder.fit if encoder else "squash",
        data=f"{task.cards['data'].name} {_hash(task.what['cards']['data'])}",
        size=len(labels.words),
    )
    shards = -(-len(data) // stage.shard)
    seen: dict[Path, Any] = {}
    for number in range(rank, shards, ranks):
        _shard(task, stage, labels, encoder, data, header, number, events)
        seen |= _counts(task.folder / "labels", number)
        _tolerated(stage, seen, len(data))
    if ranks > 1:
        dist.barrier()
    return _finish(task, stage, labels, header, shards, rank)


def _hash(what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def _shard(
    task: Task, stage: Label, labels: LabelSource, encoder: Vision | None, data: Data, header: Header, number: int,
    events: Events,
) -> None:  # fmt: skip
    folder = task.folder / "labels"
    if (folder / f"shard-{number:05d}.json").exists():
        return  # made before the stage was interrupted
    rows: list[bytes] = []
    keys: list[str] = []
    bad: list[list[str]] = []
    last = min((number + 1) * stage.shard, len(data))
    for start in range(number * stage.shard, last, stage.batch):
        images = list(_images(data, range(start, min(start + stage.batch, last)), encoder, bad))
        if images:
            keys_B, pixels, frames = zip(*images, strict=True)
            assert encoder is not None
            words_NK, scores_NK = labels.label(_dense(encoder, torch.stack(pixels)).flatten(0, 1))
            scores_NK[~torch.tensor([seen for frame in frames for seen in frame.seen()])] = 0  # padding has no word
            each = (t.cpu().view(len(images), -1, header.keep).numpy() for t in (words_NK, scores_NK))
            rows += [store.pack(header, *one) for one in zip(*each, frames, strict=True)]
            keys += keys_B
        own = min(start + stage.batch, last) - number * stage.shard
        events.progress(min(number * stage.shard + own * world()[1], len(data)), len(data), UNIT)  # others label, too
    store.write_shard(folder, number, header, rows, keys, bad)


def _images(
    data: Data, numbers: range, encoder: Vision | None, bad: list[list[str]]
) -> Iterator[tuple[str, Tensor, Frame]]:
    """(key, pixels, frame) of every image of some records; what cannot be read goes into `bad` with the reason."""
    assert encoder is not None
    for number in numbers:
        try:
            record = data[number]
        except DataError as err:
            bad.append([data.id_of(number), err.what])
            continue
        for key, reference in zip(record.keys, record.images, strict=True):
            try:
                image = data.image(reference)
                yield key, encoder.pixels(image), encoder.frame(upright_size(image))
            except DataError as err:
                bad.append([key, err.what])


def _counts(folder: Path, number: int) -> dict[Path, Any]:
    """{file: what it says} of a shard, without the keys."""
    place = folder / f"shard-{number:05d}.json"
    about = files.read_json(place, kind=ShardFile)
    return {place: {"rows": about["rows"], "bad": about["bad"]}}


def _tolerated(stage: Label, shards: dict[Path, Any], records: int = 0) -> None:
    """Raise a StageError where shards lack more images than `max_bad` allows of theirs, or of so many records.

    Those that lack any are made again by the same command, so that mended images are read.
    """
    bad = [pair for about in shards.values() for pair in about["bad"]]
    images = sum(about["rows"] for about in shards.values()) + len(bad)
    if len(bad) <= stage.max_bad * max(images, records):
        return
    for place, about in shards.items():
        if about["bad"]:
            place.unlink()
    first = "; ".join(f"{name}: {reason}" for name, reason in bad[:3])
    what = f"{len(bad)} of {images} images could not be read, more than max_bad {stage.max_bad:g}: {first}"
    raise StageError(what, at=str(min(shards).parent), fix="mend them and run the same command, or raise max_bad")


def _finish(task: Task, stage: Label, labels: LabelSource, header: Header, shards: int, rank: int) -> dict[str, Any]:
    if rank:
        return {}
    folder = task.folder / "labels"
    seen = [_counts(folder, number) for number in range(shards)]
    _tolerated(stage, {place: about for one in seen for place, about in one.items()})
    done = store.finish(folder, header, labels.words, shards)
    bad = [pair for shard in done.shards for pair in shard["bad"]]
    images = sum(shard["rows"] for shard in done.shards)
    about = {k: v for k, v in asdict(done).items() if k != "shards"}
    return {"metrics": {"images": images, "bad": len(bad)}, "labels": about, "bad": bad[:100]}
