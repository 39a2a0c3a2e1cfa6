"""A trained model from wherever it lies: a training stage, an exported folder, a LLaVA checkpoint, a hub id."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import torch

from mmalign.pipeline import existing, task
from mmalign.plan.recipe import Train
from mmalign.vlm.folder import FORMAT, MMAlignModel


def load(spec: str) -> MMAlignModel:
    """The model that `trained.find` finds under a name, in eval mode; on a GPU where there is one.

    Raises RunError for what is no model, and for a hub id that cannot be fetched.
    """
    place = existing.fetched(existing.find(spec))
    if (place / "stage.json").exists():
        model = _of_stage(place)
    elif (place / "mmalign.json").exists():
        model = MMAlignModel.from_pretrained(place)
    else:
        model = _of_llava(place)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _of_stage(place: Path) -> MMAlignModel:
    from mmalign.pipeline import build

    given = task.load(place)
    assert isinstance(given.stage, Train), "trained.find lets no other stage through"
    own = [(slot, folder) for slot, folder in given.reads if slot in ("vision", "llm")]
    parts = build.parts(replace(given, reads=[*own, ("weights", place)]))
    build.cast_all(given.stage.precision, parts.vision, parts.adapter, parts.llm)
    return MMAlignModel(parts.vision, parts.adapter, parts.llm)


def _of_llava(place: Path) -> MMAlignModel:
    """Taken apart once, and kept until one of its files changes."""
    from mmalign.integrations.llava import llava

    root = Path(os.environ.get("MMALIGN_CACHE") or Path.home() / ".cache" / "mmalign") / "imported"
    stamps = [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in sorted(place.iterdir())]
    target = root / hashlib.sha256(f"{FORMAT} {place} {stamps}".encode()).hexdigest()[:16]
    if not target.exists():
        try:
            llava(str(place), target)
        except OSError:
            if not target.exists():  # else another process was quicker
                raise
    return MMAlignModel.from_pretrained(target)
