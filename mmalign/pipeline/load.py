"""A trained model from wherever it lies: a training stage, an exported folder, a LLaVA checkpoint, a hub id."""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from mmalign.io import files
from mmalign.pipeline import build, existing, task
from mmalign.plan.cards import Registry
from mmalign.plan.exported import FORMAT
from mmalign.plan.recipe import Train
from mmalign.vlm import folder
from mmalign.vlm.model import VLM


def load(spec: str | Path) -> VLM:
    """The model under a name, in eval mode; on a GPU where there is one.

    spec: what `mmalign eval` takes: the folder of a training stage (runs/train-...), an exported folder, a LLaVA
    checkpoint, a hub id, or a folder of runs, which means the newest model in it. Raises RunError for what is no
    model, and for a hub id that cannot be fetched.
    """
    place = existing.fetched(existing.find(str(spec)))
    if (place / "stage.json").exists():
        model = _of_stage(place)
    elif (place / "mmalign.json").exists():
        model = folder.read(place)
    else:
        model = _of_llava(place)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _of_stage(place: Path) -> VLM:
    trained = task.load(place)
    assert isinstance(trained.stage, Train), "existing.find lets no other stage through"
    parts = existing.parts(trained, Registry())
    own = [(slot, parent) for slot, parent in trained.reads if slot in ("vision", "llm")]
    model = build.vlm(replace(trained, cards=parts, reads=[*own, ("weights", place)]))
    build.cast_all(trained.stage.precision, model)
    return model


def _of_llava(place: Path) -> VLM:
    """Taken apart once, and kept until one of its files changes."""
    from mmalign.integrations.llava import llava

    stamps = [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in sorted(place.iterdir())]
    target = files.cache("imported") / hashlib.sha256(f"{FORMAT} {place} {stamps}".encode()).hexdigest()[:16]
    if not target.exists():
        try:
            llava(str(place), target)
        except OSError:
            if not target.exists():  # else another process was quicker
                raise
    return folder.read(target)
