"""The stage graph: what runs, in what order, and what is already done.

A stage is done when <runs>/<kind>-<fingerprint>/stage.json exists. That file is written last, so a killed stage is
never taken for a finished one; a changed recipe gets a new folder, so nothing is overwritten; and two recipes, or two
arms of a study, that need the same labels share them.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from mmalign.errors import CardError, GraphError, RunError, suggest
from mmalign.io import document, environment, files, seal, yaml
from mmalign.plan import facts, sources
from mmalign.plan.cards import SHIPPED, Card, Registry, below, members
from mmalign.plan.recipe import BESIDE, KINDS, Evaluate, Label, Part, Recipe, Report, Stage, key_of

FORMAT = 1  # of stage.yaml, stage.json and the folders they stand in
CODE = "code of "  # begins what `why` says of a part whose code changed
LOOKS: dict[str, list[Any]] = {"watch": [], "watch_readouts": ["input"], "evaluate": []}  # and where none was asked for
DIGITS = 12  # hex digits of a fingerprint in a folder's name


class Settings(TypedDict, total=False):
    objectives: dict[str, Any]


class What(TypedDict, total=False):
    """Of what a stage was made from, what others read."""

    settings: Settings


class Finished(TypedDict):
    """What others read of a stage.json."""

    name: str
    kind: str
    seed: int
    what: What
    reads: list[tuple[str, str]]
    metrics: dict[str, float | dict[str, float]]
    parts: NotRequired[dict[str, str]]
    arms: NotRequired[list[str]]
    warnings: NotRequired[list[str]]
    account: NotRequired[list[str]]  # what was left out or cut
    exported: NotRequired[str]


@dataclass
class Node:
    """One stage of one or several arms that share it."""

    name: str
    stage: Stage
    recipe: Recipe
    cards: dict[str, Card]  # role: card
    what: dict[str, Any]  # everything that can change what the stage writes
    folder: Path
    reads: list[tuple[str, "Node"]]
    arms: list[str] = field(default_factory=list)  # "arm, seed N" of every variant that uses it

    @cached_property
    def done(self) -> bool:
        """Whether its stage.json exists; a RunError when another format of mmalign wrote it."""
        place = self.folder / "stage.json"
        if not place.exists():
            return False
        fix = f"another --runs folder, or --force {self.name} (keeps the old folder aside)"
        results = seal.read(place, fix=fix)
        if (version := document.version(results)) != FORMAT:
            theirs = document.shown(version)
            what = f"{self.folder.name} was written in format {theirs}; this mmalign reads format {FORMAT}"
            raise RunError(what, at=str(place), fix=fix)
        document.fit(results, Finished, str(place), fix=fix)
        return True

    @property
    def begun(self) -> bool:
        return not self.done and (self.folder / "stage.yaml").exists()

    @property
    def fingerprint(self) -> str:
        return self.folder.name.rpartition("-")[2]


def plan(variants: Sequence[Recipe], runs: str | Path = "runs", registry: Registry | None = None) -> list[Node]:
    """The stages of a recipe's variants in the order they run, equal ones once."""
    registry = registry or Registry(variants[0].registry)
    runs = Path(runs)
    hashes = files.Hashes(runs / ".hashes.json")
    nodes: dict[str, Node] = {}
    reports: dict[str, tuple[Recipe, list[tuple[str, Node]]]] = {}
    for recipe in variants:
        own: dict[str, Node] = {}
        for name in order(recipe):
            stage = recipe.stages[name]
            reads = [(slot, own[other]) for slot, other in stage.reads.edges()]
            if isinstance(stage, Report):
                reports.setdefault(name, (recipe, []))[1].extend((_arm(recipe), other) for _, other in reads)
                continue
            new = node(recipe, name, cards_of(recipe, name, registry), reads, runs, hashes)
            own[name] = nodes.setdefault(str(new.folder), new)
            own[name].arms.append(_arm(recipe))
    for name, (recipe, scores) in reports.items():  # one report for the whole study
        cells = [("scores", other) for _, other in scores]
        new = node(recipe, name, cards_of(recipe, name, registry), cells, runs, hashes, scores)
        nodes[str(new.folder)] = new
    hashes.save()
    return list(nodes.values())


def _arm(recipe: Recipe) -> str:
    return f"{recipe.arm or 'seed'} {recipe.seed}" if recipe.matrix else ""


def order(recipe: Recipe) -> list[str]:
    """Stage names, each after those it reads."""
    stages = recipe.stages
    for name, stage in stages.items():
        for slot, other in stage.reads.edges():
            _edge(recipe, name, stage, slot, other)
    edges = {name: [other for _, other in stage.reads.edges()] for name, stage in stages.items()}
    try:
        return list(TopologicalSorter(edges).static_order())
    except CycleError as err:
        circle = err.args[1]
        at, fix = recipe.where(f"stages.{circle[1]}.reads"), "take one of the `reads` out"
        raise GraphError(f"stages read each other in a circle: {' -> '.join(circle)}", at=at, fix=fix) from err


def _edge(recipe: Recipe, name: str, stage: Stage, slot: str, other: str) -> None:
    at = recipe.where(f"stages.{name}.reads.{slot}")
    if other not in recipe.stages:
        fix = suggest(other, [n for n in recipe.stages if n != name])
        raise GraphError(f"stage {name!r} reads {slot} from {other!r}, which is no stage", at=at, fix=fix)
    if slot not in stage.takes:
        can = ", ".join(stage.takes) or "nothing"
        raise GraphError(f"a stage of kind {stage.kind} reads no {slot}", at=at, fix=f"it can read: {can}")
    if slot not in KINDS[recipe.stages[other].kind].gives:
        kinds = " or ".join(kind for kind, cls in KINDS.items() if slot in cls.gives)
        kind = recipe.stages[other].kind
        raise GraphError(f"stage {other!r} (kind {kind}) gives no {slot}", at=at, fix=f"read it from a {kinds} stage")


def named(recipe: Recipe, name: str) -> Iterator[tuple[str, str, Part, str]]:
    """(role, family, part, dotted key) of every part a stage uses."""
    stage: Stage = recipe.stages[name]
    keys = {"labels": "source" if isinstance(stage, Label) else "labels.source", "gate": "gate.bench"}
    keys |= {f"{BESIDE}{part.card}": f"evaluate.{n}" for n, part in enumerate(getattr(stage, "evaluate", ()))}
    for number, (role, family, part) in enumerate(stage.named()):
        key = f"bench.{number}" if isinstance(stage, Evaluate) else keys.get(role, role)
        yield role, family, part, f"stages.{name}.{key}"
    for role, family in (("vision", "vision"), ("adapter", "adapters"), ("llm", "llms"), ("vlm", "vlms")):
        if role in stage.parts and (part := getattr(recipe.model, role)):
            yield role, family, part, f"model.{role}"


def cards_of(recipe: Recipe, name: str, registry: Registry) -> dict[str, Card]:
    """{role: card} of every part a stage uses, with the cards that those name themselves (`role.encoder`)."""
    cards: dict[str, Card] = {}
    for role, family, part, key in named(recipe, name):
        card = _card(family, part, registry, recipe.where(key))
        cards |= {role: card} | below(role, registry.inside(card))
    if untouched(recipe.stages[name], cards):
        cards = {role: card for role, card in cards.items() if role.split(".")[0] not in ("vision", "adapter")}
    if (fit := fit_of(recipe, name)) and (role := encoder_of(recipe.stages[name], cards)):
        cards[role] = replace(cards[role], args={**cards[role].args, "fit": fit})
    return cards


def untouched(stage: Stage, cards: Mapping[str, Card]) -> bool:
    """Whether a stage is of the language model alone: an evaluation that shows no picture and reads no trained model,
    whatever the recipe's model has beside it. So it is the same for every arm of a study."""
    return isinstance(stage, Evaluate) and stage.reads.weights is None and not showing(stage, cards, untold=True)


def showing(stage: Evaluate, cards: Mapping[str, Card], untold: bool = False) -> list[str]:
    """The benchmarks of an evaluation that show pictures; untold: of those that do not say it, too."""
    known = {part.card: facts.of(cards[f"bench.{part.card}"]).get("shows", untold) for part in stage.bench}
    return [name for name, shows in known.items() if shows]


def fit_of(recipe: Recipe, name: str) -> str | None:
    """How a stage's pictures become squares: as it says itself, else as the stage whose weights it reads saw them."""
    stage: Stage = recipe.stages[name]
    if hasattr(stage, "fit") or stage.reads.weights not in recipe.stages:
        return getattr(stage, "fit", None)
    return fit_of(recipe, stage.reads.weights)


def encoder_of(stage: Stage, cards: Mapping[str, Card]) -> str:
    """The role of the encoder that is given the stage's pictures, the innermost; empty: it sees none."""
    outer = "labels.encoder" if isinstance(stage, Label) else "vision"
    return max((role for role in cards if role == outer or role.startswith(f"{outer}.")), key=len, default="")


def _card(family: str, part: Part, registry: Registry, at: str) -> Card:
    """The card of a part, with the recipe's arguments laid over its own."""
    try:
        card = registry.card(family, part.card)
        return registry.filled(replace(card, args={**card.args, **part.args}))
    except CardError as err:
        raise CardError(err.what, at=err.at or at, fix=err.fix) from err


def node(
    recipe: Recipe,
    name: str,
    cards: dict[str, Card],
    reads: Sequence[tuple[str, Node]],
    runs: Path,
    hashes: files.Hashes,
    scores: Sequence[tuple[str, Node]] = (),
    identities: Mapping[str, Any] | None = None,
) -> Node:
    """A stage of a recipe, its folder named by the fingerprint of everything that can change what it writes.

    cards: of the stage, by role. scores: (arm, evaluation) of every cell of a study's report. identities: of cards
    whose result depends on something else than what `identity` looks at, by role.
    """
    stage: Stage = recipe.stages[name]
    known = identities or {}
    counted = {role: card for role, card in cards.items() if not role.startswith(BESIDE)}
    what = {
        "kind": stage.kind,
        "version": stage.version,
        **({"seed": recipe.seed} if stage.seeded else {}),
        "settings": (settings := result_settings(stage)),
        **({"content": content} if (content := _content(settings, hashes)) else {}),
        "cards": {role: known[role] if role in known else identity(card, hashes) for role, card in counted.items()},
        "reads": [[slot, other.folder.name] for slot, other in reads],
        **({"arms": [arm for arm, _ in scores]} if scores else {}),
    }
    text = json.dumps(what, sort_keys=True, default=str)
    own = environment.values({role: card.args for role, card in counted.items()})  # counts, and is written nowhere
    digest = hashlib.sha256((text + (json.dumps(own) if own else "")).encode()).hexdigest()
    folder = runs / f"{stage.kind}-{digest[:DIGITS]}"
    return Node(name, stage, recipe, cards, json.loads(text), folder, list(reads), [arm for arm, _ in scores])


def result_settings(stage: Stage) -> dict[str, Any]:
    """The settings that can change a stage's result; cards and edges are counted apart."""
    silent = {f.name for f in fields(stage) if f.metadata.get("result") is False} | {"reads", "kind"}
    return {key_of(name): item for name, item in asdict(stage).items() if name not in silent}


def identity(card: Card, hashes: files.Hashes) -> dict[str, Any]:
    """What of a card can change a result: what it builds, the code of that where it is none of mmalign's, and the
    content of the local files it points at."""
    content = _content(card.args, hashes)
    if card.family == "benchmarks":
        content |= {spec: digest for spec in files.strings(card.args) if (digest := hashes.tables(spec))}
    plugin = {} if card.origin == SHIPPED or card.origin.startswith("shelf") else {"origin": card.origin}
    code = sources.code([card.target, *(one.target for _, one in members(card) if one.target)], hashes)
    return {
        "target": card.target, "args": card.args, **({"content": content} if content else {}), **plugin,
        **({"code": code} if code else {}),
    }  # fmt: skip


def _content(value: Any, hashes: files.Hashes) -> dict[str, str]:
    """{spec: hash} of the local files among given strings."""
    return {spec: digest for spec in files.strings(value) if (digest := hashes.of(spec))}


def unseen(node: Node) -> Iterator[str]:
    """What a finished stage was not asked to look at, and the recipe now asks for: none of it is in its fingerprint."""
    asked = {name: own for name, default in LOOKS.items() if (own := getattr(node.stage, name, default)) != default}
    if not asked or not node.done:
        return
    before: Any = None
    with suppress(RunError, OSError):  # it only explains
        before = yaml.read(node.folder / "stage.yaml", RunError).raw.get("stage")
    for name in asked if isinstance(before, dict) else ():
        if any(one not in before.get(name, LOOKS[name]) for one in asdict(node.stage)[name]):
            again = f"--force {node.name} runs it again"
            yield f"stage {node.name!r} is done, and not with this `{name}`, which changes no result: {again}"


def why(node: Node) -> str:
    """Why a stage that was not begun has to run, for the reader of a plan: what changed since the last time it ran."""
    waiting = [other.name for _, other in node.reads if not other.done]
    before = _latest(node)
    told = _changes(before, node.what, node.cards) if before else []
    changes = [change for change in told if not (waiting and change.startswith("reads"))]
    if changes and all(change.startswith(CODE) for change in changes):
        return f"{', '.join(changes)} changed"
    if changes:
        return "changed: " + ", ".join(changes[:3]) + (" ..." if len(changes) > 3 else "")
    return f"after {', '.join(dict.fromkeys(waiting))}" if waiting else "not run yet"


def _latest(node: Node) -> dict[str, Any] | None:
    """What the newest finished stage of the same recipe, name and arm was made from."""
    finished = []
    for place in node.folder.parent.glob(f"{node.stage.kind}-*/stage.json"):
        try:
            results = files.read_json(place, kind=Finished)
            same = results.get("recipe") == node.recipe.name and results["name"] == node.name
            if same and set(node.arms) & set(results.get("arms", node.arms)):
                finished.append((place.stat().st_mtime, results["what"]))
        except (OSError, RunError):
            continue  # another format; it only explains, so it may be skipped
    return max(finished, key=lambda pair: pair[0])[1] if finished else None


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], cards: Mapping[str, Card]) -> list[str]:
    """What differs, in a reader's words. The code of a part is not told where its class is another one anyway."""
    old, new = dict(flat(before)), dict(flat(now))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    code = {f"cards.{role}.code": card.name for role, card in cards.items() if f"cards.{role}.target" not in keys}
    told = [f"{CODE}{code[key]}" if key in code else _change(key, old.get(key), new.get(key)) for key in keys]
    return list(dict.fromkeys(filter(None, told)))


def _change(key: str, old: Any, new: Any) -> str:
    """Nothing of a file that is no longer, or only now, pointed at: the argument that does says it."""
    _, content, spec = f".{key}".partition(".content.")
    if content:
        return f"what {spec} holds" if old and new else ""
    if key.startswith("cards.") and key.endswith(".code"):
        return ""
    return f"{key.removeprefix('settings.').removeprefix('cards.')} {old} -> {new}"


def flat(item: Any, under: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested mappings and lists of them; a list of plain values is a value."""
    if isinstance(item, Mapping):
        for key, inner in item.items():
            yield from flat(inner, f"{under}.{key}".lstrip("."))
    elif isinstance(item, list) and any(isinstance(inner, (dict, list)) for inner in item):
        for number, inner in enumerate(item):
            yield from flat(inner, f"{under}.{number}")
    else:
        yield under, item
