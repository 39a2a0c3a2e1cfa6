"""A trained model from wherever it lies: a training stage, an exported folder, a LLaVA checkpoint, a hub id.

Its files are hashed while the libraries that read them are imported; both take seconds.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.io import files, sums
from mmalign.pipeline import existing, original, task, weights
from mmalign.plan import building
from mmalign.plan.cards import Card, Registry
from mmalign.plan.exported import FORMAT
from mmalign.plan.recipe import Language, Train

if TYPE_CHECKING:
    from mmalign.vlm.model import VLM


def load(spec: str | Path) -> "VLM":
    """The model under a name, in eval mode; on a GPU where there is one.

    spec: what `mmalign eval` takes: the folder of a training stage (runs/train-...), an exported folder, a LLaVA
    checkpoint or another vision-language model of transformers, a hub id, or a folder of runs, which means the newest
    model in it; or a language model alone: its card's name, its checkpoint, the folder of a language stage. Raises
    RunError for what is no model, for a file that is not as it was written, and for a hub id that cannot be fetched.
    """
    named = existing.find(str(spec))
    if isinstance(named, str) and existing.alone(named):
        model = _language_model(Registry().card("llms", named))
    else:
        model = _of_files(existing.fetched(named))
    import torch

    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _of_files(place: Path) -> "VLM":
    if (place / "stage.json").exists():
        return _of_stage(place)
    if (place / "mmalign.json").exists():
        return _of_folder(place)
    if existing.alone(place):
        target, args = "mmalign.llms.causal.CausalLM", {"checkpoint": str(place)}
        return _language_model(Card("", target, args, name=place.name, family="llms"))
    if existing.whole(place):
        return _of_transformers(place)
    return _of_llava(place)


def _of_stage(place: Path) -> "VLM":
    trained = task.load(place)
    stage = trained.stage
    assert isinstance(stage, (Train, Language)), "existing.find lets no other stage through"
    parts = existing.parts(trained, Registry())
    own = [(slot, parent) for slot, parent in trained.reads if slot in ("vision", "llm")]
    trained = replace(trained, cards=parts, reads=[*own, ("weights", place)])
    weights.begin(trained)
    from mmalign.pipeline import build

    model = build.vlm(trained)
    build.cast_all(stage.precision, model)
    return model


def _language_model(card: Card) -> "VLM":
    """A language model alone."""
    from mmalign.vlm.model import VLM

    return VLM(None, None, building.build(card))


def _of_folder(place: Path) -> "VLM":
    sums.begin(sums.read(place))
    from mmalign.vlm import folder

    return folder.read(place)


def _of_transformers(place: Path) -> "VLM":
    from mmalign.integrations import whole

    with sums.verifying(sums.read(place), sums.AGAIN):
        return whole.read(place)


def _of_llava(place: Path) -> "VLM":
    """Taken apart once, and kept until one of its files changes; as it is, where that cannot be."""
    from mmalign.integrations.llava import holds, llava

    own = files.read_json(place / "config.json", kind=dict[str, Any])
    if not original.is_original(own) and not holds(str(place)):
        return _of_transformers(place)
    others = original.outside(place).values() if original.is_original(own) else ()
    listed = [one for folder in (place, *others) for one in sorted(folder.iterdir())]
    stamps = [(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in listed]
    target = files.cache("imported") / hashlib.sha256(f"{FORMAT} {place} {stamps}".encode()).hexdigest()[:16]
    if not target.exists():
        try:
            llava(str(place), target)
        except OSError:
            if not target.exists():  # else another process was quicker
                raise
    return _of_folder(target)
