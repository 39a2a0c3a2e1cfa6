"""A trained model from wherever it lies: a training stage, an exported folder, a LLaVA checkpoint."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from mmalign import task
from mmalign.errors import RunError
from mmalign.hub import MMAlignModel
from mmalign.recipe import Train


def load(spec: str) -> MMAlignModel:
    """The model of a finished training stage, a folder `mmalign export` or `MMAlignModel` wrote, or a llava-hf id.

    Raises RunError for anything else.
    """
    place = Path(spec)
    if (place / "stage.json").exists():
        return _of_stage(place.resolve())
    if (place / "mmalign.json").exists():
        return MMAlignModel.from_pretrained(place)
    if (place / "config.json").exists() or ("/" in spec and not place.exists()):
        return _of_llava(spec)
    fix = "runs/train-..., an exported folder, or a hub id such as llava-hf/llava-1.5-7b-hf"
    raise RunError(f"{spec} is no checkpoint", at=spec, fix=fix)


def _of_stage(place: Path) -> MMAlignModel:
    from mmalign.stages import build  # a stage's parts are built as stages build them

    given = task.load(place)
    if not isinstance(given.stage, Train):
        what = f"{place} is a stage of kind {given.stage.kind}"
        raise RunError(what, at=str(place), fix="a finished stage of kind train")
    own = [(slot, folder) for slot, folder in given.reads if slot in ("vision", "llm")]
    parts = build.parts(replace(given, reads=[*own, ("weights", place)]))
    return MMAlignModel(parts.vision, parts.adapter, parts.llm).eval()


def _of_llava(spec: str) -> MMAlignModel:
    """Taken apart once, and kept."""
    from mmalign.importing import llava

    root = Path(os.environ.get("MMALIGN_CACHE") or Path.home() / ".cache" / "mmalign") / "imported"
    target = root / hashlib.sha256(str(Path(spec).resolve() if Path(spec).exists() else spec).encode()).hexdigest()[:16]
    if not (target / "mmalign.json").exists():
        try:
            llava(spec, target)
        except (OSError, ValueError) as err:
            what = f"cannot load {spec}: {str(err).splitlines()[0]}"
            raise RunError(what, at=spec, fix="check the name, or the network") from err
    return MMAlignModel.from_pretrained(target)
