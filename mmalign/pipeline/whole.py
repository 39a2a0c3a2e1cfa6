"""Whether what lies in a folder of runs is as it was written: stages, checkpoints, label stores, exported models."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmalign.errors import RunError
from mmalign.io import seal, sums

NONE = "no hashes: an earlier mmalign wrote it"


@dataclass
class Look:
    """What was seen at a place. damage: (file, what is wrong); note: why nothing could be said."""

    place: Path
    kind: str
    damage: list[tuple[Path, str]] = field(default_factory=list)
    note: str = ""


def looks(folder: Path) -> Iterator[Look]:
    """Every stage, checkpoint, store and export in a folder, at any depth; RunError where there are none."""
    marks = sorted((place for name in LOOKS for place in folder.rglob(name)), key=lambda place: place.parent)
    if not marks:
        fix = "a folder of runs, a stage's folder, a label store or an exported model"
        raise RunError(f"nothing that mmalign wrote lies in {folder}", at=str(folder), fix=fix)
    for mark in marks:
        look = Look(mark.parent, KINDS[mark.name])
        try:
            LOOKS[mark.name](look, mark)
        except RunError as err:
            look.damage.append((Path(err.at), err.what))
        yield look


def _listed(look: Look, mark: Path) -> None:
    """The files whose hashes a stage.json or step.json lists."""
    about = seal.read(mark, sums.Damaged)
    if not isinstance(about, dict):
        raise sums.Damaged(f"{mark.name} is damaged: it is no mapping", at=str(mark))
    look.note = "" if seal.HASHES in about else NONE
    known = about.get(seal.HASHES, {})
    look.damage += sums.damage({mark.parent / name: digest for name, digest in known.items()})


def _summed(look: Look, mark: Path) -> None:
    look.damage += sums.damage(sums.read(mark.parent))


def _stored(look: Look, mark: Path) -> None:
    from mmalign.labels.store import Store  # loads torch

    store = Store(mark.parent, lengths=False)
    look.note = "" if store.header.index else NONE
    look.damage += ((mark.parent / name, what) for name, what in store.damage())


LOOKS: dict[str, Callable[[Look, Path], None]] = {
    "stage.json": _listed,
    "step.json": _listed,
    sums.NAME: _summed,
    "header.json": _stored,
}
KINDS = {"stage.json": "stage", "step.json": "checkpoint", sums.NAME: "exported model", "header.json": "label store"}
