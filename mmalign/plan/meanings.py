"""What every setting of a recipe is: its type, unit, bounds, default and meaning, read off the settings classes.

A meaning is the comment beside a field, or right above it; so it stands once, where the field does.
"""

import ast
import inspect
import io
import tokenize
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from omegaconf import MISSING as NEEDED

from mmalign.io.document import is_union
from mmalign.plan.recipe import Part, Stage, key_of

WORDS: dict[Any, str] = {float: "number", int: "whole number", str: "word", bool: "true or false", Any: "value"}
BOUNDS = {"above": "above", "least": "at least", "most": "at most", "below": "below"}


@dataclass(frozen=True)
class Setting:
    """A field of a settings class. key: dotted, as it stands in YAML.

    kind: without the `None` of `X | None`. default: the value; None where there is none. needed: it must be given.
    unit: of a number; empty: it has none. once: a list has each value once. meaning: one or a few sentences.
    """

    key: str
    kind: Any
    default: Any
    needed: bool
    bounds: dict[str, float]
    unit: str
    once: bool
    meaning: str

    @property
    def type(self) -> str:
        """In words: `whole number above 0`, `one of bf16, fp32`, `list of words`."""
        return words(self.kind, self.bounds)

    @property
    def choices(self) -> list[Any]:
        """The values there are; empty: any of its type."""
        inner = get_args(self.kind)[0] if get_origin(self.kind) is list else self.kind
        return list(get_args(inner)) if get_origin(inner) is Literal else []

    @property
    def about(self) -> str:
        """All of it for a reader: `of samples ... (whole number above 0, samples; default 8)`."""
        default = self.default
        told = "; needed" if self.needed else f"; default {default}" if default not in (None, "", [], {}) else ""
        return f"{self.meaning} ({self.type}{', ' + self.unit if self.unit else ''}{told})"


def of(cls: type, under: str = "") -> Iterator[Setting]:
    """The settings of a class in their order, and below each that is a class of settings its own."""
    hints, said = typing.get_type_hints(cls), meanings(cls)
    for f in fields(cls):
        kind = present(hints[f.name])
        key = f"{under}.{key_of(f.name)}".lstrip(".")
        default, given = _default(f), f.metadata
        bounds = {word: given[word] for word in (*BOUNDS, "length") if word in given}
        plain = None if needed(f) or is_dataclass(default) else default
        yield Setting(key, kind, plain, needed(f), bounds, given.get("unit", ""), "once" in given, said.get(f.name, ""))
        inside = get_args(kind)[-1] if get_origin(kind) is dict else kind
        if is_dataclass(inside) and inside is not Part:
            yield from of(typing.cast(type, inside), f"{key}.NAME" if inside is not kind else key)


def of_stage(cls: type[Stage]) -> list[Setting]:
    """The settings of a kind of stage; its kind, which is the question, is left out."""
    return [setting for setting in of(cls) if setting.key != "kind"]


@cache
def meanings(cls: type) -> dict[str, str]:
    """{field: the comment beside or above it} of a settings class, those it inherits too; empty where there is none."""
    said: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        if is_dataclass(one):
            said |= _comments(inspect.getfile(one)).get(one.__name__, {})
    return said


@cache
def _comments(file: str) -> dict[str, dict[str, str]]:
    """{class: {field: its comment}} of a source file."""
    text = Path(file).read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = text.splitlines()
    comment_at = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    alone = {line for line, token in comment_at.items() if lines[line - 1].lstrip().startswith("#")}
    found: dict[str, dict[str, str]] = {}
    for node in (one for one in ast.parse(text).body if isinstance(one, ast.ClassDef)):
        for item in (one for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)):
            first = item.lineno
            while first - 1 in alone:
                first -= 1
            own = [line for line in range(first, (item.end_lineno or item.lineno) + 1) if line in comment_at]
            said = " ".join(comment_at[line].string.lstrip("# ").rstrip() for line in own)
            found.setdefault(node.name, {})[ast.unparse(item.target)] = said
    return found


def needed(f: Field[Any]) -> bool:
    """Whether a setting, or one inside it, has no default."""
    default = _default(f)
    return bool(default == NEEDED or (is_dataclass(default) and lacking(default)))


def lacking(settings: Any) -> bool:
    """Whether a settings object, as it is by default, lacks a value that must be given."""
    return any(value == NEEDED or (is_dataclass(value) and lacking(value)) for value in vars(settings).values())


def words(kind: Any, bounds: dict[str, float] | None = None) -> str:
    """A type in a reader's words: `whole number above 0`, `card, or {card:, args:}`."""
    origin, inner = get_origin(kind), get_args(kind)
    limits = " and ".join(f"{word} {bounds[key]:,}" for key, word in BOUNDS.items() if bounds and key in bounds)
    if kind is Part:
        return "card"
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin is list:
        count = f"{bounds['length']:g} " if bounds and "length" in bounds else ""
        each = words(inner[0])
        return f"list of {count}{each if each.startswith('one of') else each + 's'} {limits}".strip()
    if origin is dict or is_dataclass(kind):
        return "mapping"
    return f"{WORDS.get(kind, 'value')} {limits}".strip()


def present(hint: Any) -> Any:
    """X of `X | None`."""
    return next(one for one in get_args(hint) if one is not types.NoneType) if is_union(hint) else hint


def _default(f: Field[Any]) -> Any:
    if f.default_factory is not MISSING:
        return f.default_factory()
    return None if f.default is MISSING else f.default
