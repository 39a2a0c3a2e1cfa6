"""JSON documents with their types: what does not fit is told with the file, the key and what stands there.

    class Step(TypedDict):
        step: Count
        tensors: Count

    header: Step = files.read_json(folder / "step.json", kind=Step, fix="delete the folder")

A type is a TypedDict (other keys are left alone), a dataclass (other keys are refused; values come as they are, not as
an object), dict[str, X], list[X], tuple[X, Y] (a list of so many), a union, a Literal, Annotated[X, Least(n)], a plain
type or Any. Any other type is not looked into. An `int` is no bool, a `float` is any number.
"""

import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from mmalign.errors import MMAlignError, RunError

MAX_DEPTH = 100  # levels of nesting, as in YAML; ours go some ten deep
SHOWN = 60  # characters of a value in a message
FIX = "another file; was it damaged?"
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.S)
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a character that JSON writes in two
_WORDS: dict[Any, str] = {
    float: "a number", int: "a whole number", str: "text", bool: "true or false", types.NoneType: "null",
    list: "a list", dict: "a mapping",
}  # fmt: skip


@dataclass(frozen=True)
class Least:
    """The least value of a number."""

    value: float


Count = Annotated[int, Least(0)]
Side = Annotated[int, Least(1)]  # of a grid or an image; any number of what there is at least one of


def version(value: Any) -> Any:
    """What a document says its format is; None where it does not."""
    return value.get("format") if isinstance(value, dict) else None


def parse(
    text: str | bytes, at: str, error: type[MMAlignError] = RunError, fix: str = FIX, depth: int | None = MAX_DEPTH
) -> Any:
    """The value of a JSON text that stands at some place, or an `error`.

    depth: the most levels of nesting; None: what Python's parser can follow, where counting them would take too long.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        if depth is not None and _deeper(text, depth):
            raise error(f"nested more than {depth} deep", at=at, fix=fix)
        value = json.loads(text)
        if _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as err:
        raise error("nested too deep", at=at, fix=fix) from err
    except UnicodeEncodeError as err:
        half = f"{err.object[err.start]!r}"
        raise error(f"not valid JSON: {half} is half a character", at=at, fix=fix) from err
    except UnicodeDecodeError as err:
        raise error(f"not UTF-8 text: {err.reason} at byte {err.start}", at=at, fix=fix) from err
    except ValueError as err:
        raise error(f"not valid JSON: {err}", at=at, fix=fix) from err
    return value


def _deeper(text: str, limit: int) -> bool:
    """Whether brackets stand inside more than `limit` others; those in strings do not count."""
    if text.count("[") + text.count("{") <= limit:  # nearly every line
        return False
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > limit:
            return True
    return False


def fit(value: Any, kind: Any, at: str, error: type[MMAlignError] = RunError, fix: str = FIX) -> None:
    """Raise an `error` for the first value in a document that has not its type. at: the file it stands in."""
    if found := problem(value, kind):
        key, what = found
        raise error(f"{Path(at).name} is damaged: {key or 'it'} {what}", at=f"{at}  {key}".strip(), fix=fix)


def problem(value: Any, kind: Any, key: str = "") -> tuple[str, str] | None:
    """(dotted key, what is wrong there) of the first value that has not its type; None: all of them have."""
    return next(_problems(value, kind, key), None)


def _problems(value: Any, kind: Any, key: str) -> Iterator[tuple[str, str]]:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Required, NotRequired):
        yield from _problems(value, inner[0], key)
    elif origin is Annotated:
        if problem(value, inner[0], key) or _least(value, inner):  # of a plain number, so at this key
            yield key, _wanted(kind, value)
    elif is_union(kind):
        yield from _in_union(value, inner, key)
    elif origin is Literal:
        if not any(value == one and type(value) is type(one) for one in inner):
            yield key, _wanted(kind, value)
    elif is_typeddict(kind) or is_dataclass(kind):
        yield from _in_record(value, kind, key)
    elif isinstance(known := origin or kind, type) and known in _TYPES:
        if not _is(value, known) or (known is tuple and not _length(inner) <= len(value) <= _length(inner, len(value))):
            yield key, _wanted(kind, value)
        elif inner:
            for name, item, each in _items(value, known, inner):
                yield from _problems(item, each, f"{key}.{name}".lstrip("."))


_TYPES = {float, int, str, bool, types.NoneType, list, tuple, dict, Sequence, Mapping}


def _is(value: Any, known: Any) -> bool:
    if known is float:
        return isinstance(value, float) or (_is(value, int) and abs(value) < 1 << 1023)  # else it has no float
    if known is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    if known in (list, tuple, Sequence):
        return isinstance(value, (list, tuple))
    return isinstance(value, dict if known is Mapping else known)


def _length(inner: tuple[Any, ...], most: int = 0) -> int:
    """How long a tuple is, at least, or at most."""
    return most if not inner or inner[-1] is Ellipsis else len(inner)


def _items(value: Any, known: Any, inner: tuple[Any, ...]) -> Iterator[tuple[Any, Any, Any]]:
    """(key or number, value, its type) of what a list or mapping holds."""
    if known in (dict, Mapping):
        yield from ((name, item, inner[-1]) for name, item in value.items())
    elif known is tuple and inner[-1] is not Ellipsis:
        yield from zip(range(len(value)), value, inner, strict=True)
    else:
        yield from ((number, item, inner[0]) for number, item in enumerate(value))


def _least(value: Any, inner: tuple[Any, ...]) -> bool:
    """Whether a number is below its least."""
    bounds = [bound.value for bound in inner[1:] if isinstance(bound, Least)]
    return isinstance(value, (int, float)) and any(value < bound for bound in bounds)


def _in_union(value: Any, inner: tuple[Any, ...], key: str) -> Iterator[tuple[str, str]]:
    """What is wrong by the type that says the most of where: of a mapping, of a list."""
    if all(problem(value, one, key) for one in inner):
        deepest = max((found for one in inner for found in _problems(value, one, key)), key=lambda found: len(found[0]))
        yield deepest if deepest[0] != key else (key, _wanted(Union[inner], value))  # noqa: UP007


def _in_record(value: Any, kind: Any, key: str) -> Iterator[tuple[str, str]]:
    if not isinstance(value, dict):
        yield key, _wanted(dict, value)
        return
    hints, needed = _keys(kind)
    yield from ((key, f"lacks {name!r}") for name in needed if name not in value)
    for name, item in value.items():
        if name in hints:
            yield from _problems(item, hints[name], f"{key}.{name}".lstrip("."))
        elif is_dataclass(kind):
            yield key, f"has a key {name!r}, which nothing here knows"


@cache
def _keys(kind: Any) -> tuple[dict[str, Any], list[str]]:
    """({key: its type}, the keys that must be there) of a TypedDict or a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    if is_typeddict(kind):
        return hints, sorted(kind.__required_keys__, key=list(hints).index)
    known = [f for f in fields(kind) if f.init]
    needed = [f.name for f in known if f.default is MISSING and f.default_factory is MISSING]
    return {f.name: hints[f.name] for f in known}, needed


def _wanted(kind: Any, value: Any) -> str:
    return f"must be {words(kind)}, got {shown(value)}"


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value[:SHOWN] if isinstance(value, (str, list)) else value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def words(kind: Any) -> str:
    """A type in a reader's words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        bounds = [f" of at least {one.value:g}" for one in inner[1:] if isinstance(one, Least)]
        return words(inner[0]) + "".join(bounds)
    if is_union(kind):
        return " or ".join(dict.fromkeys(words(one) for one in inner))
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        return f"a list of {len(inner)}: {', '.join(words(one) for one in inner)}"
    if origin in (list, tuple, dict, Sequence, Mapping):
        whole = "a mapping" if origin in (dict, Mapping) else "a list"
        each = inner[0] if origin in (list, tuple, Sequence) else inner[-1]
        return whole if each is Any else f"{whole} of {words(each)}"
    return _WORDS.get(kind, "a mapping")


def is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)
