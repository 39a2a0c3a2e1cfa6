"""Where a dotted name is defined: the text of modules, found and parsed. Nothing is imported."""

import ast
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mmalign.io import packages

DEEP = 20  # imports and base classes followed


class Absent(Exception):
    """The target does not exist; the text says which part of it."""


@dataclass
class Definition:
    """A class or function, and the module its text stands in."""

    node: ast.ClassDef | ast.FunctionDef
    module: str


def find(target: str, deep: int = DEEP) -> Definition | None:
    """Where a target is defined; None where that cannot be told from the text."""
    module, _, name = target.rpartition(".")
    place = file_of(module)
    if place is None or place.suffix != ".py" or not deep:
        return None
    text = tree(place)
    for node in statements(text.body):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return Definition(node, module)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return find(f"{imported(node, module, place)}.{alias.name}", deep - 1)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and name in _bound(node):  # Old = New
            return find(f"{module}.{node.value.id}", deep - 1)
    if not _may_have(text, name):
        raise Absent(f"{module} has no {name}")
    return None


def _bound(node: ast.Assign) -> list[str]:
    return [one.id for one in node.targets if isinstance(one, ast.Name)]


_places: dict[tuple[Any, ...], Path] = {}  # files of modules, by the module and all that Python looks through


def file_of(module: str) -> Path | None:
    """The file of a module; None where it is not a plain file. Absent when it is not installed."""
    key = (module, os.getcwd() if "" in sys.path else "", *map(id, sys.meta_path), *sys.path)
    place = _places.get(key)
    if place is None or not place.is_file():
        _places.pop(key, None)
        if place := _file_of(module):
            _places[key] = place
    return place


def _file_of(module: str) -> Path | None:
    top, *rest = module.split(".")
    spec = packages.spec(top)
    if spec is None:
        raise Absent(f"no package {top!r} is installed")
    places = [Path(place) for place in spec.submodule_search_locations or []]
    if not rest:
        return Path(spec.origin) if spec.origin else None
    if not any(place.is_dir() for place in places):
        return None  # inside a zip file
    for number, word in enumerate(rest, 1):
        files = [f for place in places for f in _modules(place, word)]
        places = [place / word for place in places if (place / word).is_dir()]
        if not files and not places:
            raise Absent(f"{'.'.join([top, *rest[:number]])} does not exist")
        if number == len(rest):
            return files[0] if files else None
    return None


def folder_of(package: str) -> Path | None:
    """The folder of a package, or one inside it that need not be a package; None where there is none."""
    top, *rest = package.split(".")
    spec = packages.spec(top)
    places = [Path(place).joinpath(*rest) for place in (spec and spec.submodule_search_locations) or []]
    return next((place for place in places if place.is_dir()), None)


def _modules(folder: Path, word: str) -> Iterator[Path]:
    yield from (place for place in (folder / word / "__init__.py", folder / f"{word}.py") if place.is_file())
    yield from (place for place in folder.glob(f"{word}.*.so"))


def tree(place: Path) -> ast.Module:
    """A module's text, parsed once while it stays as it is; Absent where it is not valid Python."""
    stat = place.stat()
    return _parsed(place, stat.st_size, stat.st_mtime_ns)


@cache
def _parsed(place: Path, size: int, time: int) -> ast.Module:
    try:
        return ast.parse(place.read_bytes())
    except (SyntaxError, ValueError) as err:
        raise Absent(f"{place} is not valid Python: {err}") from err


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, those under `if` and `try` too."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            yield from statements([*node.body, *node.orelse])


def imported(node: ast.ImportFrom, module: str, place: Path) -> str:
    """The absolute name of the module of `from x import y`."""
    if not node.level:
        return node.module or ""
    inside = module.split(".") + ([""] if place.name == "__init__.py" else [])
    return ".".join([*inside[: len(inside) - node.level], *([node.module] if node.module else [])])


def _may_have(tree: ast.Module, name: str) -> bool:
    """Whether a module may have a name that is no class, function or import of it."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {alias.asname or alias.name.split(".")[0] for node in ast.walk(tree)
              if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names}  # fmt: skip
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return name in names or "*" in names or "__getattr__" in functions
