"""From YAML files, `extends`, a matrix and `key=value` words to typed recipes; every error names its line."""

import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmalign.errors import MMAlignError, RecipeError, suggest
from mmalign.io import files, yaml
from mmalign.io.document import is_union
from mmalign.io.yaml import Document
from mmalign.plan import interpolation
from mmalign.plan.recipe import (
    KINDS,
    LabelSettings,
    ModelParts,
    ObjectiveSettings,
    Part,
    Recipe,
    RecipeFile,
    Stage,
    key_of,
)
from mmalign.plan.validate import first_line, place_of, plain, typed

T = TypeVar("T")
COMMAND = "command line"
CARDS = "a folder with vision/, adapters/, ... of cards in it; `./` counts from the recipe's own folder"
NAMES = ("card", "kind")  # where another one is named, the settings of the old one mean nothing
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")


def load(path: str | Path, overrides: Sequence[str] = ()) -> list[Recipe]:
    """The recipe in a file, once for every arm and seed of its matrix (once without a matrix).

    path: a YAML file, or the name of a shipped recipe. overrides: `dotted.key=value` words.
    Raises RecipeError with file:line for anything that is not a recipe.
    """
    layers, words = _extended(find(path), ()), [_override(word) for word in overrides]
    places = [Path(layer.root.rpartition(":")[0]) for layer in layers]  # root: its first line
    sources = {place.name: place.read_text(encoding="utf-8") for place in places}
    base = replace(_read([*layers, *words]), asked=[str(path), *overrides], sources=sources)
    if not base.matrix:
        return [base]
    return [
        replace(variant, arm=arm, seed=seed, asked=base.asked, sources=base.sources)
        for arm, changes in (base.matrix.arms or {"": {}}).items()
        for variant in [_read([*layers, _arm(base, arm, changes), *words])]
        for seed in base.matrix.seeds or [variant.seed]
    ]


def _arm(base: Recipe, arm: str, changes: dict[str, Any]) -> Document:
    """The layer of an arm: dotted keys, or nested ones, laid over the recipe and under the command line."""
    key = f"matrix.arms.{arm}"
    if arm and not NAME.fullmatch(arm):
        raise RecipeError(f"an arm cannot be named {arm!r}", at=base.where(key), fix="letters, digits, _ and -")
    return _dotted(changes, lambda inner: base.where(f"{key}.{inner}").split("  ")[0])


def find(path: str | Path) -> Path:
    """The file a recipe's path or shipped name means."""
    place = Path(path)
    if files.exists(place) and place.is_file():
        return place
    known = shipped()
    if name := stands_for(path):
        return known[name]
    fix = f"a path, or {suggest(str(path), known)}   (mmalign list recipes)"
    raise RecipeError(f"no recipe {str(path)!r}", fix=fix)


def stands_for(path: str | Path) -> str:
    """The shipped recipe that a path or name means where no such file is there; "" for none.

    NAME, and recipes/NAME.yaml, as pages write it: in a clone that is the file, elsewhere the same recipe.
    """
    place = Path(path)
    name = place.stem if place.parent == Path("recipes") and place.suffix == ".yaml" else str(path)
    return name if name in shipped() and not (files.exists(place) and place.is_file()) else ""


def shipped() -> dict[str, Path]:
    folder = files.local("pkg:mmalign.recipes/")
    assert folder is not None
    return {place.stem: place for place in sorted(folder.glob("*.yaml"))}


def _extended(place: Path, above: tuple[Path, ...]) -> list[Document]:
    """The file and those it extends, the most basic first."""
    if place.resolve() in above:
        raise RecipeError(f"{place} extends itself", at=str(place), fix="break the circle of `extends`")
    document = yaml.read(place, RecipeError)
    parent = document.raw.pop("extends", None)
    document.raw = files.anchored(document.raw, place.parent)
    if parent is None:
        return [document]
    if not isinstance(parent, str):
        raise RecipeError("`extends` must name one recipe", at=document.where("extends"))
    beside = place.parent / parent
    try:
        target = beside if files.exists(beside) and beside.is_file() else find(parent)
    except RecipeError as err:
        raise RecipeError(f"no recipe {parent!r} to extend", at=document.where("extends"), fix=err.fix) from err
    return [*_extended(target, (*above, place.resolve())), document]


def _override(word: str) -> Document:
    key, item = setting(word)
    return _dotted({key: item}, lambda _: COMMAND)


def setting(
    word: str, error: type[MMAlignError] = RecipeError, example: str = "stages.tune.optim.lr=1e-4"
) -> tuple[str, Any]:
    """(key, value) of a `key=value` word on a command line; the value is YAML, its `./` counts from the working folder.

    Raises an `error` for anything else, which names the example.
    """
    key, equals, text = word.partition("=")
    if not equals or not key.strip("."):
        raise error(f"{word!r} is not key=value", at=COMMAND, fix=f"for example {example}")
    try:
        return key, files.anchored(yaml.value(text, COMMAND, error), Path.cwd())
    except MMAlignError as err:
        raise error(f"cannot read {text[:60]!r}: {err.what}", at=f"{COMMAND}  {key}", fix="quote it") from err


def _dotted(changes: dict[str, Any], spot: Callable[[str], str]) -> Document:
    """A layer from {dotted key: value}; `spot` says where a key stands."""
    layer = Document({}, {}, spot(""))
    for key, item in changes.items():
        inner = layer.raw
        *path, last = key.split(".")
        for word in path:
            inner = inner.setdefault(word, {})
            if not isinstance(inner, dict):
                raise RecipeError(f"{key!r} goes into a key that is set to a value", at=spot(key), fix="one of the two")
        if last in inner:
            raise RecipeError(f"{key!r} is set twice here", at=spot(key), fix="one key that holds all of it")
        inner[last] = item
        layer.at |= {inside: spot(inside) for inside in _inside(key, item)}
    return layer


def _inside(key: str, item: Any) -> Iterator[str]:
    """A dotted key and all those in its value."""
    yield key
    pairs = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
    for name, inner in pairs:
        yield from _inside(f"{key}.{name}", inner)


def _read(layers: Sequence[Document]) -> Recipe:
    """Merge the layers, later over earlier, and read the result as a Recipe."""
    raw: dict[str, Any] = {}
    at: dict[str, str] = {}
    for number, layer in enumerate(layers):
        raw = merged(raw, _Sugar(layer, _kinds(layers, number)).recipe())
        at |= layer.at
        for key, spot in layer.at.items():
            while key := key.rpartition(".")[0]:
                at.setdefault(key, spot)  # `stages.new.kind=train` brings a stage that is in no file
    root = [layer.root for layer in layers if layer.root != COMMAND][-1]
    return _recipe(Document(raw, at, root))


def _kinds(layers: Sequence[Document], number: int) -> dict[str, Any]:
    """{stage: its kind in a layer}: given there or below it, else by the first layer above."""
    kinds: dict[str, Any] = {}
    for place, layer in enumerate(layers):
        stages = layer.raw.get("stages")
        for name, stage in (stages if isinstance(stages, dict) else {}).items():
            if isinstance(stage, dict) and "kind" in stage and (place <= number or name not in kinds):
                kinds[name] = stage["kind"]
    return kinds


def merged(base: Any, over: Any, path: tuple[str, ...] = ()) -> Any:
    """`over` laid upon `base`: null takes a key away, a new card or kind takes its old settings with it.

    In arguments null is a value; in an arm of a matrix it waits until the arm is laid over the recipe.
    """
    if not isinstance(over, dict):
        return over
    base = dict(base) if isinstance(base, dict) else {}
    literal = "args" in path or (path[:2] == ("matrix", "arms") and len(path) > 2)
    if not literal and any(isinstance(over.get(key), str) and base.get(key, over[key]) != over[key] for key in NAMES):
        base = {}
    for key, item in over.items():
        if item is None and not literal:
            base.pop(key, None)
        else:
            base[key] = merged(base.get(key), item, (*path, key))
    return base


class _Sugar:
    """Checks the keys of one layer against the settings classes and writes short forms out."""

    def __init__(self, layer: Document, kinds: dict[str, Any]) -> None:
        self.layer, self.kinds = layer, kinds

    def recipe(self) -> dict[str, Any]:
        raw = dict(self.layer.raw)
        stages = raw.pop("stages", {})
        raw = self.fields(RecipeFile, raw, "")
        if stages is None:
            return {**raw, "stages": None}
        if not isinstance(stages, dict):
            fix = "stages: {align: {kind: train, ...}}"
            raise RecipeError("`stages` must be a mapping of names to stages", at=self.layer.where("stages"), fix=fix)
        return {**raw, "stages": {str(name): self.stage(str(name), stage) for name, stage in stages.items()}}

    def stage(self, name: str, stage: Any) -> Any:
        at = self.layer.where(f"stages.{name}")
        if not NAME.fullmatch(name):
            raise RecipeError(f"a stage cannot be named {name!r}", at=at, fix="letters, digits, _ and -")
        if stage is None:
            return None
        if not isinstance(stage, dict):
            raise RecipeError(f"stage {name!r} must be a mapping, got {stage!r}", at=at, fix="{kind: train, ...}")
        if name not in self.kinds:
            raise RecipeError(f"stage {name!r} has no kind", at=at, fix="kind: " + " | ".join(KINDS))
        kind = self.kinds[name]
        if not isinstance(kind, str) or kind not in KINDS:
            at = self.layer.where(f"stages.{name}.kind")
            raise RecipeError(f"no stage kind {kind!r}", at=at, fix=suggest(str(kind), KINDS))
        return self.fields(KINDS[kind], stage, f"stages.{name}")

    def fields(self, cls: type, raw: Any, under: str) -> dict[str, Any]:
        if not isinstance(raw, dict):
            what, keys = f"{under} must be a mapping, got {raw!r}", ", ".join(key_of(f.name) for f in fields(cls))
            raise RecipeError(what, at=self.layer.where(under), fix=f"keys: {keys}")
        hints = {key_of(name): hint for name, hint in typing.get_type_hints(cls).items()}
        known = [key_of(f.name) for f in fields(cls)]
        full = {key: f"{under}.{key}".lstrip(".") for key in raw}
        for key in raw:
            if key not in known:
                fix = " or ".join(self.below(str(key)) if not under else ()) or suggest(str(key), known)
                raise RecipeError(f"no setting {key!r} here", at=self.layer.where(str(full[key])), fix=fix)
        return {key: self.item(hints[key], item, full[key]) for key, item in raw.items()}

    def below(self, key: str) -> Iterator[str]:
        """The dotted keys that somebody may mean who writes one of a stage or of the model where a recipe's stand."""
        classes: dict[str, type] = {"model": ModelParts}
        classes |= {f"stages.{name}": KINDS[kind] for name, kind in self.kinds.items() if kind in list(KINDS)}
        for place, cls in classes.items():
            for f in fields(cls):
                factory: Any = f.default_factory
                inner = fields(factory) if f.name in ("optim", "engine") else ()
                if key_of(f.name) == key:
                    yield f"{place}.{key}"
                elif key in [one.name for one in inner]:
                    yield f"{place}.{f.name}.{key}"

    def item(self, hint: Any, item: Any, key: str) -> Any:
        """One value as its type wants it, short forms written out."""
        options = [h for h in get_args(hint) if h is not types.NoneType] if is_union(hint) else [hint]
        hint = options[0]
        if item is None:
            return None
        if is_dataclass(hint):
            return self.fields(cast(type, hint), _long(cast(type, hint), item), key)
        inner = get_args(hint)
        if get_origin(hint) is list and inner:
            if not isinstance(item, list):
                return [self.item(inner[0], item, key)]
            return [self.item(inner[0], one, f"{key}.{number}") for number, one in enumerate(item)]
        if get_origin(hint) is dict and isinstance(item, dict) and inner[1] is not Any:
            return {str(name): self.item(inner[1], one, f"{key}.{name}") for name, one in item.items()}
        if isinstance(item, (list, dict)) and hint is not Any and get_origin(hint) not in (list, dict):
            what = f"{key} must be {plain(hint)}, got {item!r}"
            raise RecipeError(what, at=self.layer.where(key), fix="one value, without brackets")
        return item


def _long(cls: type, item: Any) -> Any:
    """The long form of `vision: NAME`, `labels: NAME` and `lm: 1.0`."""
    if cls is Part and isinstance(item, str):
        return {"card": item}
    if cls is LabelSettings and isinstance(item, str):
        return {"source": item}
    if cls is ObjectiveSettings and isinstance(item, (int, float)) and not isinstance(item, bool):
        return {"weight": item}
    return item


def _recipe(document: Document) -> Recipe:
    try:
        for key, asked in interpolation.refused(document.raw):
            what = f"a recipe may not ask for {asked}: other keys, and of the environment MMALIGN_* alone"
            raise RecipeError(what, at=document.where(key), fix="${other.key}, or ${oc.env:MMALIGN_NAME}")
        for key, name in interpolation.unset(document.raw):
            raise RecipeError(f"{name} is not set", at=document.where(key), fix=f"export {name}=...")
        raw = OmegaConf.to_container(OmegaConf.create(interpolation.kept(document.raw)), resolve=True)
        document.raw = cast(dict[str, Any], raw)
        document.raw = _Sugar(document, _kinds([document], 0)).recipe()  # again, for what stood behind ${...}
    except OmegaConfBaseException as err:
        raise RecipeError(first_line(err), at=document.where(place_of(err)), fix="check the ${...} in it") from err
    except (RecursionError, ValueError) as err:
        raise RecipeError(f"not a recipe: {err}", at=document.root) from err
    stages = {name: _stage(document, name, raw) for name, raw in document.raw.pop("stages", {}).items()}
    recipe = Recipe(**vars(typed(RecipeFile, document, document.raw, "")), where=document.where)
    recipe.stages = stages
    if not stages:
        raise RecipeError("a recipe needs stages", at=document.root, fix="stages: {align: {kind: train, ...}}")
    for number, folder in enumerate(recipe.registry):
        if not files.exists(Path(folder)) or not Path(folder).is_dir():
            raise RecipeError(f"no registry folder {folder}", at=document.where(f"registry.{number}"), fix=CARDS)
    return recipe


def _stage(document: Document, name: str, raw: Any) -> Stage:
    return typed(KINDS[raw["kind"]], document, raw, f"stages.{name}")
