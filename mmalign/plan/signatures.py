"""What a card's target takes, read from its source text: nothing is imported, so a check stays quick."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

DEEP = 20  # imports and base classes followed
EMPTY = {"nn.Module", "torch.nn.Module", "Module", "object", "ABC", "Protocol", "Generic", "NamedTuple"}  # take nothing

Arguments = dict[str, bool]  # name: whether it must be given


class Absent(Exception):
    """The target does not exist; the text says which part of it."""


@dataclass
class Found:
    """A class or function, and the module its text stands in."""

    node: ast.ClassDef | ast.FunctionDef
    module: str


def takes(target: str) -> Arguments | None:
    """The arguments of a class or function; None where the text does not tell. Absent when there is no such thing."""
    found = find(target)
    return _arguments(found, DEEP) if found else None


def summary(target: str) -> str:
    """The first line of a target's docstring; empty where there is none to read."""
    try:
        found = find(target)
    except Absent:
        return ""
    text = (ast.get_docstring(found.node) if found else None) or ""
    return text.partition("\n")[0].rstrip(".")


def find(target: str, deep: int = DEEP) -> Found | None:
    """Where a target is defined; None where that cannot be told from the text."""
    module, _, name = target.rpartition(".")
    place = file_of(module)
    if place is None or place.suffix != ".py" or not deep:
        return None
    tree = _tree(place)
    for node in _statements(tree.body):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return Found(node, module)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return find(f"{_imported(node, module, place)}.{alias.name}", deep - 1)
    if not _may_have(tree, name):
        raise Absent(f"{module} has no {name}")
    return None


def file_of(module: str) -> Path | None:
    """The file of a module; None where it is not a plain file. Absent when it is not installed."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top) if top else None
    except (ImportError, ValueError):
        spec = None
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


def _modules(folder: Path, word: str) -> Iterator[Path]:
    yield from (place for place in (folder / word / "__init__.py", folder / f"{word}.py") if place.is_file())
    yield from (place for place in folder.glob(f"{word}.*.so"))


@cache
def _tree(place: Path) -> ast.Module:
    try:
        return ast.parse(place.read_bytes())
    except (SyntaxError, ValueError) as err:
        raise Absent(f"{place} is not valid Python: {err}") from err


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, those under `if` and `try` too."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            yield from _statements([*node.body, *node.orelse])


def _imported(node: ast.ImportFrom, module: str, place: Path) -> str:
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
    made = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return name in names or "*" in names or "__getattr__" in made


def _arguments(found: Found, deep: int) -> Arguments | None:
    if isinstance(found.node, ast.FunctionDef):
        return _parameters(found.node.args, skip=0)
    made = {node.name: node for node in found.node.body if isinstance(node, ast.FunctionDef)}
    if "__init__" in made:
        return _parameters(made["__init__"].args, skip=1)
    if "__new__" in made or found.node.keywords:
        return None
    names = [ast.unparse(d.func if isinstance(d, ast.Call) else d) for d in found.node.decorator_list]
    inherited = _inherited(found, deep)
    if any(name.rpartition(".")[2] == "dataclass" for name in names):
        return None if inherited is None else inherited | _fields(found.node)
    return inherited


def _parameters(args: ast.arguments, skip: int) -> Arguments | None:
    if args.kwarg:
        return None
    plain = [*args.posonlyargs, *args.args]
    needed = len(plain) - len(args.defaults)
    found = {arg.arg: number < needed for number, arg in enumerate(plain)}
    found |= {arg.arg: default is None for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)}
    return dict(list(found.items())[skip:])


def _fields(node: ast.ClassDef) -> Arguments:
    lines = [item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
    return {ast.unparse(item.target): item.value is None for item in lines if "ClassVar" not in ast.dump(item)}


def _inherited(found: Found, deep: int) -> Arguments | None:
    """The arguments of the first base class whose text can be found."""
    assert isinstance(found.node, ast.ClassDef)
    for base in found.node.bases:
        name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
        if name in EMPTY:
            continue
        try:
            above = find(f"{found.module}.{name}", deep - 1) if "." not in name else None
        except Absent:
            above = None
        return _arguments(above, deep - 1) if above and deep else None
    return {}
