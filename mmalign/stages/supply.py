"""Where a training stage's labels come from: a store, a source that runs in the pass, or the data itself."""

from dataclasses import dataclass

import torch

from mmalign.data import Data
from mmalign.errors import StageError
from mmalign.labels import LabelSource
from mmalign.labels.store import Store
from mmalign.objectives import Words
from mmalign.pipeline import build
from mmalign.pipeline.build import Parts
from mmalign.pipeline.task import Task
from mmalign.plan.recipe import Train
from mmalign.stages import label
from mmalign.training.events import Events
from mmalign.vision import Vision


@dataclass
class Supply:
    """store: labels made before. source, encoder: what makes them in the pass; encoder None: the model's own, or none
    needed. words: the list, as the language model spells it."""

    store: Store | None = None
    source: LabelSource | None = None
    encoder: Vision | None = None
    words: Words | None = None


def supply(task: Task, stage: Train, parts: Parts, data: Data, events: Events) -> Supply:
    """What the recipe names: `reads.labels`, `labels`, or nothing.

    Raises StageError for a store that another source, word list or `keep` made, and for a list no word of which has a
    token.
    """
    if (folder := task.parent("labels")) is not None:
        store = Store(folder / "labels")
        return Supply(store=store, words=spelled(store.words, parts, events))
    if stage.labels is None:
        return Supply()
    build.cast_all(stage.precision, parts.vision)  # labels are made by what it is while it trains
    source, encoder = label.source(task, stage.labels.keep, data, events, own=parts.vision)
    if stage.labels.store:
        store = _expected(Store(stage.labels.store), source, stage.labels.keep)
        return Supply(store=store, words=spelled(store.words, parts, events))
    shared = encoder is None or encoder is parts.vision
    return Supply(source=source, encoder=None if shared else encoder, words=spelled(source.words, parts, events))


def _expected(store: Store, source: LabelSource, keep: int) -> Store:
    """The store, if it holds what the source would have made."""
    fix = "name the source that made it, or label again"
    if store.words != source.words:
        what = f"the label store's word list is {_some(store.words)}, the recipe's is {_some(source.words)}"
        raise StageError(what, at=store.folder, fix=fix)
    if store.header.encoder != source.identity():
        what = f"the label store was made by [{store.header.encoder}], the recipe asks for [{source.identity()}]"
        raise StageError(what, at=store.folder, fix=fix)
    if store.header.keep != min(keep, len(source.words)):
        what = f"the label store keeps {store.header.keep} words a patch, the recipe {keep}"
        raise StageError(what, at=store.folder, fix=f"keep: {store.header.keep}, or label again")
    return store


def _some(words: list[str]) -> str:
    return f"{len(words):,} words ({', '.join(words[:3])}, ...)"


def spelled(words: list[str], parts: Parts, events: Events) -> Words:
    """A word list as the language model spells it; words it makes nothing of are counted and never drawn."""
    unknown = parts.llm.chat.tokenizer.unk_token_id  # says nothing, and the same of every word it stands for
    pieces = [[] if unknown in ids else ids for ids in parts.llm.chat.pieces(words)]
    if silent := [word for word, ids in zip(words, pieces, strict=True) if not ids]:
        events.say(f"{len(silent)} words have no token and are never drawn: {', '.join(silent[:5])}")
    if len(silent) == len(words):
        raise StageError("the tokenizer makes nothing of any word in the list", fix="another word list")
    wide = max(map(len, pieces))
    table = torch.tensor([ids + [-1] * (wide - len(ids)) for ids in pieces])
    return Words(words, table, parts.llm.embed)
