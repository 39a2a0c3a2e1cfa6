"""Where a training stage's labels come from: a store, a source that runs in the pass, or the data itself."""

from dataclasses import dataclass

from mmalign.data import Data
from mmalign.errors import StageError
from mmalign.labels import LabelSource
from mmalign.labels.store import Store
from mmalign.objectives import Words
from mmalign.pipeline import build
from mmalign.pipeline.task import Task
from mmalign.plan.recipe import Train
from mmalign.stages import label
from mmalign.training.events import Events
from mmalign.vlm.model import VLM
from mmalign.vlm.supervised import PassLabels


@dataclass
class Supply:
    """store: labels made before, which batches bring. in_pass: what the pass itself has to know; None: no labels."""

    store: Store | None = None
    in_pass: PassLabels | None = None


def supply(task: Task, stage: Train, vlm: VLM, data: Data, events: Events) -> Supply:
    """What the recipe names: `reads.labels`, `labels`, or nothing.

    Raises StageError for a store that another source, word list or `keep` made, and for a list no word of which has a
    token.
    """
    if (folder := task.parent("labels")) is not None:
        store = Store(folder / "labels")
        return Supply(store, PassLabels(spelled(store.words, vlm, events)))
    if stage.labels is None:
        return Supply()
    build.cast_all(stage.precision, vlm.vision)  # labels are made by what it is while it trains
    source, encoder = label.source(task, stage.labels.keep, data, events, own=vlm.vision)
    if stage.labels.store:
        store = _expected(Store(stage.labels.store), source, stage.labels.keep)
        return Supply(store, PassLabels(spelled(store.words, vlm, events)))
    shared = encoder is None or encoder is vlm.vision
    return Supply(in_pass=PassLabels(spelled(source.words, vlm, events), source, None if shared else encoder))


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


def spelled(words: list[str], vlm: VLM, events: Events) -> Words:
    """A word list as the language model spells it; words it makes nothing of are counted and never drawn."""
    embeddings = vlm.word_embeddings(words)
    silent = embeddings.silent
    if silent:
        more = ", ..." if len(silent) > 5 else ""
        events.say(f"{len(silent)} words have no token and are never drawn: {', '.join(silent[:5])}{more}")
    if len(silent) == len(words):
        raise StageError("the tokenizer makes nothing of any word in the list", fix="another word list")
    return embeddings
