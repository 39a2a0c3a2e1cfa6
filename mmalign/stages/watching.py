"""What is looked at while a training stage runs, and changes nothing of it: BASIC's premise, on a few fixed images."""

from collections.abc import Callable, Sequence
from itertools import islice

from mmalign.llms import Look
from mmalign.objectives import Context
from mmalign.objectives.basic import Direction
from mmalign.pipeline.task import Task
from mmalign.plan.recipe import Train
from mmalign.training.batches import Collate
from mmalign.training.engine import device, world
from mmalign.training.events import Events
from mmalign.training.premise import Premise, images_of
from mmalign.training.shallow import readouts
from mmalign.vlm.batch import Batch
from mmalign.vlm.model import VLM
from mmalign.vlm.supervised import Supervised

LOOKED = 64  # samples looked through for images, before the first step


def premise(
    task: Task, stage: Train, model: Supervised, collate: Collate, steps: int, texts: Callable[[], Sequence[str]],
    events: Events,
) -> Premise | None:  # fmt: skip
    """A few fixed images whose tokens are looked at while the stage runs; None where the stage does not want it, or the
    data has no image among its first samples, which is said.

    Shallow are the layers that a BASIC objective of the stage looks at; in a stage without one, those that BASIC would
    look at by default: half of the layers, the i-th with a weight of i^2.
    """
    looks = model.looks
    if not looks and "premise" in stage.watch:
        looks = (_default(model.vlm),)
    if not looks:
        return None
    usable = (n for n in range(min(LOOKED, len(collate.data))) if collate.batch([n], seed=0).images)
    numbers = list(islice(usable, images_of(collate.tokens)))
    if not numbers:
        events.say(f"BASIC's premise is not looked at: there is no image in the first {LOOKED} samples")
        return None
    batch = collate.batch(numbers, seed=0).to(device())
    known = task.cards["data"].facts.get("truth") and model.vlm.grid is not None
    right = truths(model.vlm, collate, batch, numbers) if known else None
    layers = max(len(look.weights) for look in looks)
    reads = readouts(model.vlm, stage.watch_readouts, layers, texts)
    place, silent = task.folder / "premise.jsonl", world()[0] > 0
    return Premise(model, batch, right, place, stage.watch_every, steps, silent, reads, looks, events.say)


def _default(vlm: VLM) -> Look:
    """What BASIC would look at; a CheckError for a language model that shows none of its layers."""
    basic = Direction(attention="equal")
    basic.prepare(Context(vlm.llm.depth))
    assert basic.look is not None
    vlm.llm.prepare_looks([basic.look])
    return basic.look


def truths(vlm: VLM, collate: Collate, batch: Batch, numbers: Sequence[int]) -> list[list[set[int]]]:
    """The token ids that would be right for each patch of an object, in any spelling of its words, of each image."""
    assert batch.frames is not None
    references = [reference for number in numbers for reference in collate.data[number].images]
    rights = []
    for reference, frame in zip(references, batch.frames, strict=True):
        truth = collate.data.truth(reference, frame)
        known = sorted({word for words in truth.words for word in words})
        pieces = dict(zip(known, vlm.spellings(known), strict=True))
        objects = truth.object or [True] * len(truth.words)
        each = zip(truth.words, objects, strict=True)
        rights.append([{p for w in words for p in pieces[w]} if thing else set() for words, thing in each])
    return rights
