"""A model, or a language model alone: by the name of its card, or as a `language` stage left it."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmalign.errors import RunError, suggest
from mmalign.io import files
from mmalign.pipeline import existing, task
from mmalign.plan import building
from mmalign.plan.cards import Card, Registry
from mmalign.plan.recipe import Language

if TYPE_CHECKING:
    from mmalign.vlm.model import VLM


def find(spec: str) -> Card | Path | str:
    """The card of a language model, the folder of a finished `language` stage, or what `existing.find` gives.

    Nothing heavy is loaded. Raises RunError for anything else.
    """
    names = Registry().names("llms")
    if spec in names:
        return Registry().card("llms", spec)
    if _of_language(place := Path(spec)):
        return place.resolve()
    if not files.exists(place) and "/" not in spec:
        what = f"no checkpoint {spec}, and no language model of that name"
        raise RunError(what, at=spec, fix=f"{suggest(spec, names)}   (mmalign list llms)")
    return existing.find(spec)


def _of_language(place: Path) -> bool:
    return (place / "stage.json").exists() and isinstance(task.load(place).stage, Language)


def load(place: Card | Path | str) -> "VLM":
    """What `find` gave, in eval mode; on a GPU where there is one. A language model alone is a VLM of nothing else."""
    from mmalign.pipeline import build
    from mmalign.pipeline.load import load as whole

    if isinstance(place, str) or (isinstance(place, Path) and not _of_language(place)):
        return whole(place)
    import torch

    from mmalign.vlm.model import VLM

    if isinstance(place, Card):
        llm = building.build(place)
    else:
        stored = task.load(place)
        own = {"llm": building.own(stored.cards["llm"], Registry())}
        llm = build.llm(replace(stored, cards=own), task.done(place)["parts"], place.parent)
    return VLM(None, None, llm).eval().to("cuda" if torch.cuda.is_available() else "cpu")
