"""YAML that remembers its lines, so that an error can point into the file."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mmalign.errors import MMAlignError
from mmalign.io import brackets, limits, whole

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """YAML 1.2's plain scalars: `1e-3` is a number; `no`, `on`, `1:30` and `2026-01-01` stay words."""

    yaml_implicit_resolvers: dict[str, Any] = {}


class _Dumper(yaml.SafeDumper):
    """Puts quotes around every word that either YAML would take for something else."""


_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf)|\.(nan|NaN)"
for _tag, _pattern, _first in [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", _FLOAT, list("-+0123456789.")),
    ("merge", r"<<", ["<"]),
]:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def _int(loader: Any, node: yaml.ScalarNode) -> int:
    """`010` is ten: PyYAML reads it as octal."""
    text = loader.construct_scalar(node)
    return int(text, 16 if text[:2] == "0x" else 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _int)

MAX_SETTINGS = 20_000  # keys, list items and merges in a file; aliases of aliases could stand for billions
PLAIN = ("map", "seq", "str", "int", "float", "bool", "null")  # tags a value may have, without being written
# Levels of nesting, aliases and merges followed. Recipes go some ten deep. PyYAML takes up to three frames of Python's
# stack a level, which has room for 1,000; its C code ends the process at some ten thousand, or refuses 1,000 by itself.
MAX_DEPTH = 100


@dataclass
class Document:
    """A YAML mapping and where each of its dotted keys stands: `at["stages.align.batch"] == "x.yaml:12"`."""

    raw: dict[str, Any] = field(default_factory=dict)
    at: dict[str, str] = field(default_factory=dict)
    root: str = ""  # where a key stands that is in no file: the file itself

    def where(self, key: str) -> str:
        """`file:line  key`; a missing key points at its nearest parent that is written down."""
        near = key
        while near and near not in self.at:
            near = near.rpartition(".")[0]
        return f"{self.at.get(near, self.root)}  {key}".strip()


def value(text: str, name: str, error: type[MMAlignError]) -> Any:
    """One YAML value, as it stands behind `key=` on a command line."""
    return _load(text, name, error)[0]


def read(path: str | Path, error: type[MMAlignError]) -> Document:
    """The YAML mapping in a file; whatever is wrong with the file becomes an `error`."""
    try:
        text = whole.read(str(path), limits.SETTINGS_BYTES, error).decode("utf-8")
        return parse(text.replace("\r\n", "\n").replace("\r", "\n"), str(path), error)
    except UnicodeDecodeError as err:
        what = f"{path} is not UTF-8 text: {err.reason} at byte {err.start}"
        raise error(what, at=str(path), fix="save it as UTF-8") from err
    except (OSError, ValueError) as err:  # ValueError: a name with a zero byte
        raise error(f"cannot read {path}: {getattr(err, 'strerror', err)}", at=str(path), fix="check the path") from err


def dump(data: Any) -> str:
    """YAML that `read` reads back as it was."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def parse(text: str, name: str, error: type[MMAlignError]) -> Document:
    """As `read`, from a text; `name` stands for the file in messages."""
    raw, at = _load(text, name, error)
    if raw is not None and not isinstance(raw, dict):
        raise error(f"expected `key: value` lines, got a {_kind(raw)}", at=f"{name}:1", fix="name: ...")
    return Document(raw or {}, at, f"{name}:1")


def _kind(raw: Any) -> str:
    return "list" if isinstance(raw, list) else f"single value {raw!r}"


def _load(text: str, name: str, error: type[MMAlignError]) -> tuple[Any, dict[str, str]]:
    """(what a YAML text says, where each dotted key stands)."""
    try:
        _refuse_deep(text, name, error)
        loader = _Loader(text)
        node = loader.get_single_node()
        at = _lines(node, name, error)
        return (None if node is None else loader.construct_document(node)), at
    except (yaml.YAMLError, ValueError, KeyError) as err:
        mark = getattr(err, "problem_mark", None) or getattr(err, "context_mark", None)
        problem = (getattr(err, "problem", None) or str(err) or type(err).__name__).splitlines()[0]
        fix = "check the quotes, brackets and indentation there and above"
        raise error(f"not valid YAML: {problem}", at=f"{name}:{mark.line + 1}" if mark else name, fix=fix) from err


def _refuse_deep(text: str, name: str, error: type[MMAlignError]) -> None:
    """Before anything recursive sees the text. Brackets first: PyYAML scans 1,024 characters of them for one event."""
    line = brackets.deeper_than(MAX_DEPTH, text)
    if line is not None:
        raise _too_deep(f"{name}:{line}", error)
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            mark: Any = event.start_mark
            raise _too_deep(f"{name}:{mark.line + 1}", error)


def _too_deep(at: str, error: type[MMAlignError]) -> MMAlignError:
    return error(f"nested more than {MAX_DEPTH} deep", at=at, fix="close what is open there, or use fewer levels")


def _lines(node: yaml.Node | None, name: str, error: type[MMAlignError]) -> dict[str, str]:
    at: dict[str, str] = {}
    for number, (key, line) in enumerate(_walk(node, "", name, error, ())):
        if number >= MAX_SETTINGS:
            what = f"more than {MAX_SETTINGS:,} settings"
            raise error(what, at=f"{name}:{line}", fix="write them out without aliases")
        at[key] = f"{name}:{line}"
    return at


def _walk(
    node: yaml.Node | None, under: str, name: str, error: type[MMAlignError], above: tuple[int, ...]
) -> Iterator[tuple[str, int]]:
    """(dotted key, line) of everything inside a node; list items are numbered: `bench.0`; a merge is `<<`."""
    if node is None:
        return
    line = node.start_mark.line + 1
    if id(node) in above:
        raise error("an alias refers to itself", at=f"{name}:{line}", fix="write the value out")
    if node.tag.rpartition(":")[2] not in PLAIN:
        raise error(f"no YAML tags here: {node.tag}", at=f"{name}:{line}", fix="write the value without a tag")
    if isinstance(node, yaml.CollectionNode) and len(above) >= MAX_DEPTH:  # by aliases: what is written was counted
        raise _too_deep(f"{name}:{line}", error)
    above = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            full = f"{under}.{number}".lstrip(".")
            yield full, item.start_mark.line + 1
            yield from _walk(item, full, name, error, above)
    if isinstance(node, yaml.MappingNode):
        for merge in _merges(node):  # first, so that the mapping's own keys win
            yield f"{under}.<<".lstrip("."), merge.start_mark.line + 1
            yield from _walk(merge, under, name, error, above)
        for key, item in _pairs(node, name, error):
            full = f"{under}.{key.value}".lstrip(".")
            yield full, key.start_mark.line + 1
            yield from _walk(item, full, name, error, above)


def _merges(node: yaml.MappingNode) -> Iterator[yaml.Node]:
    """The mappings behind `<<`."""
    for key, item in node.value:
        if key.value == "<<":
            yield from reversed(item.value) if isinstance(item, yaml.SequenceNode) else [item]


def _pairs(node: yaml.MappingNode, name: str, error: type[MMAlignError]) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
    """The keys of a mapping, each once, and their values."""
    seen: set[str] = set()
    for key, item in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise error("a key must be a plain word", at=f"{name}:{line}", fix="write `key: value`")
        if key.tag.rpartition(":")[2] not in ("str", "merge"):
            raise error(f"a key must be a word, got {key.value}", at=f"{name}:{line}", fix=f"quote it: {key.value!r}")
        if key.value in seen:
            raise error(f"the key {key.value!r} is written twice", at=f"{name}:{line}", fix="keep one of the two")
        seen.add(key.value)
        if key.value != "<<":
            yield key, item
