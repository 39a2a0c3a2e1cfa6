"""Trained models under a runs folder: the newest one, and a stage that evaluates one again."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmalign import files, source, task
from mmalign.cards import Registry
from mmalign.check import paths, targets
from mmalign.errors import RunError
from mmalign.graph import DIGITS, Node, cards_of, identity, result_settings
from mmalign.recipe import Evaluate, Part, Reads, Recipe, Train


def models(runs: Path) -> Iterator[tuple[float, Path]]:
    """(when finished, folder) of every finished training stage."""
    for place in runs.glob("train-*/stage.json"):
        if "." not in place.parent.name:  # those that --force set aside end in .old-1, .old-2, ...
            yield place.stat().st_mtime, place.parent


def newest(runs: Path) -> Path:
    """The model trained last; a RunError when there is none."""
    found = max(models(runs), default=None)
    if found is None:
        raise RunError(f"no trained model under {runs}", fix="mmalign run quickstart, or name a checkpoint")
    return found[1]


def evaluation(checkpoint: Path, bench: Sequence[Part], registry: Registry) -> Node:
    """An evaluation of a finished training stage, beside it in its runs folder."""
    checkpoint = checkpoint.resolve()  # its name is looked at, and `.` has none
    fix = "a folder runs/train-... with a stage.json in it"
    if not (checkpoint / "stage.json").exists():
        raise RunError(f"{checkpoint} is no finished training stage", at=str(checkpoint), fix=fix)
    given = task.load(checkpoint)
    if not isinstance(given.stage, Train):
        raise RunError(f"{checkpoint} is a stage of kind {given.stage.kind}", at=str(checkpoint), fix=fix)
    stage = Evaluate(kind="evaluate", reads=Reads(weights=given.name), bench=list(bench))
    recipe = Recipe(name=given.recipe, seed=given.seed, stages={"eval": stage}, where=lambda _: "--bench")
    cards = {role: card for role, card in given.cards.items() if role.split(".")[0] in ("vision", "adapter", "llm")}
    asked = cards_of(recipe, "eval", registry)
    for problem in (*targets(recipe, "eval", asked), *paths(asked)):
        raise problem
    cards |= asked
    precision = getattr(given.stage, "precision", stage.precision)
    stage.precision = precision
    hashes = files.Hashes(checkpoint.parent / ".hashes.json")
    made = {
        "kind": "evaluate",
        "version": stage.version,
        "settings": result_settings(stage),
        "cards": {role: identity(card, hashes) for role, card in cards.items()},
        "reads": [["weights", checkpoint.name]],
    }
    text = json.dumps(made, sort_keys=True, default=str)
    folder = checkpoint.parent / f"evaluate-{hashlib.sha256(text.encode()).hexdigest()[:DIGITS]}"
    parent = Node(given.name, given.stage, recipe, given.cards, given.what, checkpoint, [])
    reads = [("weights", parent), *((slot, _folder(path)) for slot, path in given.reads if slot in ("vision", "llm"))]
    return Node("eval", stage, recipe, cards, json.loads(text), folder, reads)


def benches(names: Sequence[str], data: Path | None, registry: Registry) -> list[Part]:
    """Benchmarks by name; `data`, where it is given, goes to those that read a folder."""
    found = []
    for name in names:
        card = registry.card("benchmarks", name)
        reads = "data" in (source.takes(card.target) or ()) and "/" in str(card.args.get("data", "/"))
        found.append(Part(name, {"data": str(data.absolute())} if data and reads else {}))
    return found


def _folder(place: Path) -> Node:
    given = task.load(place)
    return Node(given.name, given.stage, Recipe(name=given.recipe), given.cards, given.what, place, [])


def scores(folder: Path) -> dict[str, dict[str, float]]:
    """{benchmark: {metric: value}} of a finished evaluation."""
    found: dict[str, dict[str, float]] = files.read_json(folder / "stage.json")["metrics"]
    return found
