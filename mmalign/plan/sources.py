"""The code of a part: the files of its class's module and of its own modules behind it, found without importing.

It is part of a stage's fingerprint, so that an edited plug-in or shelf class runs again what it is used in. Looked at
are the module that defines the class and the modules of the same package that it imports, theirs too; for a loose
module (on PYTHONPATH, not installed) the modules and packages beside it. Bytes are compared: a comment counts.

Not looked at: parts shipped with mmalign, which are versioned by their stages (`Stage.version` is raised when results
change, so that an upgrade which changes none runs nothing again); other packages, which the part's own version
requirements answer for; and what is no text (a compiled module, a zip file), for which the package's version stands.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from mmalign.io import files
from mmalign.plan import definitions

SHIPPED = "mmalign"
MOST = 100  # modules followed; of a package with more, the class's own module stands for all


def code(targets: Iterable[str], hashes: files.Hashes) -> str | None:
    """A hash of the code behind some targets; None where there is none to look at."""
    modules: dict[str, Path] = {}
    for target in targets:
        modules |= of(target)
    known = {name: hashes.of(str(place)) for name, place in sorted(modules.items())}
    text = "".join(f"{name}:{digest}\n" for name, digest in known.items())
    return hashlib.sha256(text.encode()).hexdigest()[:16] if known else None


def of(target: str) -> dict[str, Path]:
    """{module: file} of the code behind a target; empty for what is shipped and for what is no text."""
    module = _defining(target)
    first = _text(module)
    if first is None or module.partition(".")[0] == SHIPPED:
        return {}
    root = first.parents[module.count(".") + (first.name == "__init__.py")]
    beside = "." not in module and first.name != "__init__.py" and not any(root.glob("*.dist-info"))
    known, waiting = {module: first}, [module]
    while waiting:
        importer = waiting.pop()
        stat = known[importer].stat()
        names = _imports(importer, known[importer], stat.st_size, stat.st_mtime_ns)
        own = [name for name in names if beside or name.partition(".")[0] == module.partition(".")[0]]
        new = {name: place for name in own if name not in known and (place := _under(root, name))}
        known |= new
        waiting += new
        if len(known) > MOST:
            return {module: first}
    return known


def _defining(target: str) -> str:
    """The module that defines a target, or names it where its text does not tell."""
    try:
        definition = definitions.find(target)
    except definitions.Absent:
        definition = None
    return definition.module if definition else target.rpartition(".")[0]


def _text(module: str) -> Path | None:
    """The file of a module; None where there is none, or it is no text."""
    try:
        place = definitions.file_of(module)
    except definitions.Absent:
        return None
    return place.absolute() if place and place.suffix == ".py" else None


def _under(root: Path, module: str) -> Path | None:
    """The file of a module of which the top lies in a folder."""
    if module.partition(".")[0] == SHIPPED:
        return None
    place = root.joinpath(*module.split("."))
    return next((one for one in (place / "__init__.py", place.with_suffix(".py")) if one.is_file()), None)


@cache
def _imports(module: str, place: Path, size: int, time: int) -> tuple[str, ...]:
    """The modules that a module imports, at its top or in a function; names of a package, which may be modules, too.

    size, time: of the file, so that it is read again where it has changed.
    """
    try:
        tree = definitions.tree(place)
    except definitions.Absent:  # broken: `check` says so
        return ()
    names: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= dict.fromkeys(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = definitions.imported(node, module, place)
            names |= dict.fromkeys([base, *(f"{base}.{alias.name}" for alias in node.names)])
    return tuple(names)
