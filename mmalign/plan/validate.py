"""Raw values as settings classes: what is missing, of the wrong type or out of range is told in a reader's words."""

import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from mmalign.errors import RecipeError, suggest
from mmalign.io.document import is_union
from mmalign.io.yaml import Document
from mmalign.plan.interpolation import literal
from mmalign.plan.recipe import key_of

T = TypeVar("T")


def typed(cls: type[T], document: Document, raw: Any, under: str) -> T:
    """`raw` as a `cls`: wrong types, missing values and numbers out of range become a RecipeError."""
    try:
        settings = cast(T, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), literal(_named(cls, raw)))))
    except MissingMandatoryValue as err:
        key, name = _lacking(raw, place_of(err))
        at = document.where(f"{under}.{key}".strip("."))
        raise RecipeError(f"{under or 'the recipe'} lacks {name!r}", at=at, fix=f"{name}: ...") from err
    except OmegaConfBaseException as err:
        key = place_of(err)
        what, at = _mismatch(cls, raw, key, err), document.where(f"{under}.{key}".strip("."))
        raise RecipeError(what, at=at, fix=_example(cls, raw, key)) from err
    except (RecursionError, ValueError, TypeError, OverflowError) as err:
        raise RecipeError(f"not a recipe: {err}", at=document.where(under)) from err
    for key, problem, fix in _refused(settings):
        raise RecipeError(problem, at=document.where(f"{under}.{key}".strip(".")), fix=fix or _example(cls, raw, key))
    return settings


def _named(cls: type, raw: Any) -> Any:
    """Raw settings by the names of the class's fields."""
    names = {key_of(f.name): f.name for f in fields(cls)}
    return {names.get(key, key): item for key, item in raw.items()} if isinstance(raw, dict) else raw


def _lacking(raw: Any, key: str) -> tuple[str, str]:
    """(dotted key, name) of what is missing: `data` where a whole part is, not the `card` inside it."""
    path = key.split(".")
    for word in path[:-1]:
        raw = raw.get(word) if isinstance(raw, dict) else None
        if raw is None:
            return ".".join(path[: path.index(word) + 1]), word
    return key, path[-1]


def place_of(err: OmegaConfBaseException) -> str:
    return key_of(re.sub(r"\[(\w+)\]", r".\1", str(err.full_key or "")))


def first_line(err: Exception) -> str:
    return str(err).splitlines()[0]


def _mismatch(cls: type, raw: Any, key: str, err: Exception) -> str:
    """`optim.lr must be a number, got 'fast'`, where the key and its type are known."""
    hint, _, value = _setting(cls, raw, key)
    return f"{key} must be {plain(hint)}, got {value!r}" if key and hint else first_line(err)


def _example(cls: type, raw: Any, key: str) -> str:
    """What to try: the nearest word, the default, or a value of the right type."""
    hint, default, value = _setting(cls, raw, key)
    name = next((word for word in reversed(key.split(".")) if not word.isdigit()), key)
    if get_origin(hint) is Literal and isinstance(value, str):
        return suggest(value, get_args(hint))
    if isinstance(default, (int, float, str, list)) and default not in ("", MISSING, []):
        return f"{name}: {default}   (the default)"
    if get_origin(hint) is dict:
        return f"{name}: {{key: value}}"
    examples = {float: "1e-3", int: "8", bool: "true", str: "a word"}
    return f"{name}: {examples[hint]}" if hint in examples else "see `mmalign show recipes quickstart`"


def _setting(cls: type, raw: Any, key: str) -> tuple[Any, Any, Any]:
    """(type, default, value given) of a dotted key; the type is None where it is not a setting of ours."""
    hint: Any = cls
    default: Any = None
    for word in filter(None, key.split(".")):
        hint = _present(hint)
        if is_dataclass(hint):
            default = next((_default(f) for f in fields(hint) if key_of(f.name) == word), None)
            hint = {key_of(name): inner for name, inner in typing.get_type_hints(hint).items()}.get(word)
        elif get_origin(hint) in (list, dict):
            hint = get_args(hint)[-1]
        else:
            return None, None, raw
        raw = _inside_of(raw, word)
    return _present(hint), default, raw


def _default(f: Any) -> Any:
    return f.default_factory() if callable(f.default_factory) else f.default


def _present(hint: Any) -> Any:
    """X of `X | None`."""
    return next((h for h in get_args(hint) if h is not types.NoneType), None) if is_union(hint) else hint


def _inside_of(raw: Any, word: str) -> Any:
    if isinstance(raw, list) and word.isdigit():
        return raw[int(word)] if int(word) < len(raw) else None
    return raw.get(word) if isinstance(raw, dict) else None


def plain(hint: Any) -> str:
    """A type in a reader's words."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (list, dict):
        whole, inner = "a list" if get_origin(hint) is list else "a mapping", get_args(hint)[-1]
        return whole if inner is Any else f"{whole} of {plain(inner)}"
    words = {float: "a number", int: "a whole number", str: "a word", bool: "true or false", Any: "a value"}
    return words.get(hint, "a mapping")


def _refused(item: Any, under: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted key, what is wrong, what to try or nothing) by the fields' metadata, over nested settings."""
    for f in fields(item):
        value, key = getattr(item, f.name), f"{under}.{f.name}".lstrip(".")
        yield from ((key, f"{key} must {problem}, got {value}", "") for problem in _range(f.metadata, value))
        for number, name in _again(value) if "once" in f.metadata else ():
            yield f"{key}.{number}", f"{name} is named twice", f.metadata["once"]
        for inner, at in _inner(value, key):
            yield from _refused(inner, at)


def _again(values: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """(number, name) of every value of a list that stands in it before; a part is known by its card."""
    names = [getattr(one, "card", one) for one in values]
    yield from ((number, name) for number, name in enumerate(names) if name in names[:number])


def _inner(value: Any, key: str) -> Iterator[tuple[Any, str]]:
    if is_dataclass(value):
        yield value, key
    elif isinstance(value, dict):
        yield from ((item, f"{key}.{name}") for name, item in value.items() if is_dataclass(item))


def _range(meta: Mapping[str, Any], value: Any) -> Iterator[str]:
    """What a number, or every number of a list, must be and is not."""
    if isinstance(value, list):
        if len(value) != meta.get("length", len(value)):
            yield f"have {meta['length']} numbers"
        yield from (problem for one in value for problem in _range(meta, one))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if isinstance(value, float) and not math.isfinite(value):
        yield "be finite"
    if "above" in meta and not value > meta["above"]:
        yield f"be above {meta['above']:g}"
    if "least" in meta and not value >= meta["least"]:
        yield f"be at least {meta['least']:g}"
    if "most" in meta and not value <= meta["most"]:
        yield f"be at most {meta['most']:,}"
    if "below" in meta and not value < meta["below"]:
        yield f"be below {meta['below']:g}"
