"""What a stage is handed (stage.yaml) and what it leaves behind (stage.json)."""

import hashlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmalign import __version__
from mmalign.errors import RunError
from mmalign.io import beats, disk, document, files, seal, sums, yaml
from mmalign.pipeline import hardware, software
from mmalign.plan.cards import Card, as_dict, foreign
from mmalign.plan.graph import FORMAT, Finished, Node
from mmalign.plan.interpolation import literal
from mmalign.plan.recipe import KINDS, Report, Stage

AGAIN = "--force the stage, or another --runs folder"
FULL = 28  # exit code of a stage that found no space left, so perhaps none for error.json


@dataclass
class Task:
    folder: Path
    name: str
    recipe: str
    seed: int
    stage: Stage
    cards: dict[str, Card]  # role: card
    reads: list[tuple[str, Path]]  # (slot, the folder it is read from)
    what: dict[str, Any]  # everything that can change the result, as fingerprinted
    arms: list[str] = field(default_factory=list)  # of a study that use it; for its report: the arm of each of `reads`
    asked: list[str] = field(default_factory=list)  # of a report: what `mmalign run` was asked for; empty: not known
    sources: dict[str, str] = field(default_factory=dict)  # of a report: {recipe file: its text}

    def parent(self, slot: str) -> Path | None:
        """The folder that fills a slot, or None where the recipe leaves it open."""
        return next((folder for name, folder in self.reads if name == slot), None)


class Stored(TypedDict):
    """stage.yaml."""

    recipe: str
    name: str
    seed: int
    stage: dict[str, Any]
    cards: dict[str, Card]
    reads: list[tuple[str, str]]
    arms: list[str]
    what: dict[str, Any]
    asked: NotRequired[list[str]]
    sources: NotRequired[dict[str, str]]


def save(node: Node) -> str:
    """Write stage.yaml: all the worker needs; it never sees the recipe. Returns its hash, by which the worker knows
    it for the file that was checked here.
    """
    about = {
        "format": FORMAT,
        "mmalign": __version__,
        "recipe": node.recipe.name,
        "name": node.name,
        "seed": node.recipe.seed,
        "stage": asdict(node.stage),
        "cards": {role: as_dict(card) for role, card in node.cards.items()},
        "reads": [[slot, other.folder.name] for slot, other in node.reads],
        "arms": node.arms,
        "what": node.what,
        **({"asked": node.recipe.asked, "sources": node.recipe.sources} if isinstance(node.stage, Report) else {}),
    }
    text = yaml.dump(about).encode()
    files.write(node.folder / "stage.yaml", text)
    return hashlib.sha256(text).hexdigest()


def load(folder: Path, written: str = "") -> Task:
    """The task in a stage folder; a RunError when another format of mmalign wrote it.

    written: what `save` returned. Without it, or where the file is another one, its cards may come from others: a
    class that the registry does not know is then refused where it would be built, see plan/trust.py.
    """
    place = folder / "stage.yaml"
    about = yaml.read(place, RunError).raw
    card: Callable[..., Card] = partial(foreign, file=place)
    if written and hashlib.sha256(content := place.read_bytes()).hexdigest() == written:
        about, card = yaml.parse(content.decode(), str(place), RunError).raw, _written
    _refuse_other(about, folder)
    document.fit(about, Stored, str(place), fix=AGAIN)
    stage = _stage(about["stage"], place)
    cards = {role: card(raw, role=role) for role, raw in about["cards"].items()}
    reads = [(slot, folder.parent / other) for slot, other in about["reads"]]
    basics = {key: about[key] for key in ("name", "recipe", "seed", "what", "arms")}
    basics |= {key: about[key] for key in ("asked", "sources") if key in about}
    return Task(folder=folder, stage=stage, cards=cards, reads=reads, **basics)


def damage(folder: Path) -> str:
    """What is wrong with the stage.yaml of a stage that was begun, which `save` writes anew; empty: nothing.

    A RunError when another format of mmalign wrote it: then all in the folder is that one's.
    """
    place = folder / "stage.yaml"
    try:
        about = yaml.read(place, RunError).raw
    except RunError as err:
        return err.what
    if isinstance(about.get("format"), int):
        _refuse_other(about, folder)
    try:
        document.fit(about, Stored, str(place))
    except RunError as err:
        return err.what
    return ""


def _refuse_other(about: Mapping[str, Any], folder: Path) -> None:
    if about.get("format") != FORMAT:
        what = f"{folder.name} was begun in format {about.get('format')!r}; this mmalign reads format {FORMAT}"
        raise RunError(what, at=str(folder), fix=AGAIN)


def _written(raw: Mapping[str, Any], role: str) -> Card:
    return Card(**raw)


def _stage(raw: dict[str, Any], place: Path) -> Stage:
    """The settings of a stage.yaml, as their class has them."""
    kind = raw.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise RunError(
            f"stage.yaml is damaged: no stage kind {document.shown(kind)}", at=f"{place}  stage.kind", fix=AGAIN
        )
    try:
        settings = OmegaConf.create(literal(raw))
        return cast(Stage, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(KINDS[kind]), settings)))
    except (TypeError, ValueError, AttributeError, OverflowError, OmegaConfBaseException) as err:
        raise RunError(f"stage.yaml is damaged: {str(err).splitlines()[0]}", at=f"{place}  stage", fix=AGAIN) from err


def finish(
    task: Task, results: Mapping[str, Any], began: float, devices: int, hosts: Mapping[str, str] | None = None
) -> None:
    """Write stage.json, last of all, so that a killed stage is not taken for done, with the hash of what it left.

    All of that is on the disk before.

    results: what the stage's `run` returned: `metrics`, `parts`, and whatever else readers of the folder need.
    began: time.time() at the stage's start. devices: number of processes. hosts: {name: its
    GPUs} of the machines they ran on; None: this one.
    """
    disk.settle(task.folder)
    about = {
        "format": FORMAT,
        "mmalign": __version__,
        "recipe": task.recipe,
        "name": task.name,
        "kind": task.stage.kind,
        "seed": task.seed,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.time() - began, 2),
        "devices": devices,
        "hosts": list(hosts or [socket.gethostname()]),
        "hardware": hardware.of_hosts([*(hosts or {}).values()]),
        "software": software.used(),
        "arms": task.arms,
        "reads": [[slot, folder.name] for slot, folder in task.reads],
        "what": task.what,
        **results,
        seal.HASHES: sums.of(left(task.folder), task.folder),
    }
    seal.write(task.folder / "stage.json", about)


TRACKED, CSV = "tracked", "metrics.csv"  # of trackers, see tracking.py
# what only the run itself needs, and what may be written later
RUNNING = ("lock", "log.txt", "events.jsonl", "error.json", "stage.json", beats.FOLDER, TRACKED, CSV)


def left(folder: Path) -> Iterator[Path]:
    """The files a stage left for others to read; its checkpoints and the shards of a label store have hashes apart."""
    tops = [top for top in folder.iterdir() if top.name != "checkpoints" and top.name not in RUNNING]
    for place in (place for top in tops for place in (top, *top.rglob("*"))):
        apart = place.suffix == ".bin" and place.relative_to(folder).parts[0] == "labels"
        if not apart and place.is_file() and not place.name.startswith("."):
            yield place


def done(folder: Path) -> dict[str, Any]:
    """The stage.json of a finished stage, see `Finished`; Damaged where it is not as it was written."""
    return cast(dict[str, Any], seal.read(folder / "stage.json", sums.Damaged, AGAIN, kind=Finished))
