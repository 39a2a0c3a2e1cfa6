"""What a card's target takes and what its class says of itself, read from its source text: nothing is imported."""

import ast
import sys
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

from mmalign.io import document
from mmalign.plan import definitions

EMPTY = {"nn.Module", "torch.nn.Module", "Module", "object", "ABC", "Protocol", "Generic", "NamedTuple"}  # take nothing

ARGS = "what the class takes: mmalign show, or its docstring"
Arguments = dict[str, bool]  # name: whether it must be given
UNKNOWN, ABSENT = object(), object()  # of an attribute: the text does not tell; no class has it


class Parameter(NamedTuple):
    """An argument. kind: its type, see io/document.py; Any where the text does not tell a plain one."""

    default: str | None  # its text; None: it must be given
    kind: Any


Parameters = dict[str, Parameter]


def takes(target: str) -> Arguments | None:
    """The arguments of a class or function; None where the text does not tell. Absent when there is no such thing."""
    known = parameters(target)
    return None if known is None else {arg: one.default is None for arg, one in known.items()}


def parameters(target: str) -> Parameters | None:
    """The arguments of a class or function, by name, in their order; None and Absent as for `takes`."""
    definition = definitions.find(target)
    return _arguments(definition, definitions.DEEP) if definition else None


def docstrings(target: str) -> Iterator[str]:
    """Of a class and of its base classes, the nearest first, as far as their texts can be found."""
    definition = definitions.find(target)
    return _docstrings(definition, definitions.DEEP) if definition else iter(())


def _docstrings(definition: definitions.Definition, deep: int) -> Iterator[str]:
    yield ast.get_docstring(definition.node) or ""
    if isinstance(definition.node, ast.ClassDef) and deep:
        for base in _bases(definition.node):
            if above := _base(definition, base, deep):
                yield from _docstrings(above, deep - 1)


def mistyped(target: str, args: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(argument, what is wrong) of values whose type is not that which the text of a class or function asks for."""
    try:
        known = parameters(target) or {}
    except definitions.Absent:
        return
    bounds = attribute(target, "bounds")
    for arg, value in args.items():
        kind = known[arg].kind if arg in known else Any
        if isinstance(bounds, dict) and arg in bounds:
            continue  # which say more of it, see io/bounds.py
        if wrong := document.problem(value, kind, arg):
            key, what = wrong
            yield arg, (f"({key}) " if key != arg else "") + what


def attribute(target: str, name: str) -> Any:
    """A class attribute as its text gives it, inherited ones too. ABSENT: no class has it; UNKNOWN: it does not tell.

    Only literals are told, and `frozenset({...})`; not what instances set themselves (`self.name = ...`), nor what is
    a property, comes from a base class whose text cannot be found, or belongs to a function.
    """
    try:
        definition = definitions.find(target)
    except definitions.Absent:
        return UNKNOWN
    return UNKNOWN if definition is None else _attribute(definition, name, definitions.DEEP)


def untold(value: Any) -> bool:
    """Whether an attribute is not told by the text, or is not there."""
    return value is UNKNOWN or value is ABSENT


def _attribute(definition: definitions.Definition, name: str, deep: int) -> Any:
    """In the order of base classes, each with its own before the next: what Python does but for diamonds."""
    node = definition.node
    if not isinstance(node, ast.ClassDef) or not deep or name in _set_by_instances(node):
        return UNKNOWN
    for item in node.body:
        targets = item.targets if isinstance(item, ast.Assign) else [getattr(item, "target", None)]
        if any(isinstance(one, ast.Name) and one.id == name for one in targets) and getattr(item, "value", None):
            return _literal(item.value)  # type: ignore[attr-defined]
        if isinstance(item, ast.FunctionDef) and item.name == name:
            return UNKNOWN
    for base in _bases(node):
        above = _base(definition, base, deep)
        value = UNKNOWN if above is None else _attribute(above, name, deep - 1)
        if value is not ABSENT:
            return value
    return ABSENT


@cache
def _set_by_instances(node: ast.ClassDef) -> frozenset[str]:
    """The attributes that a class's methods set: `self.name = ...`."""
    stores = (one for one in ast.walk(node) if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store))
    return frozenset(one.attr for one in stores if isinstance(one.value, ast.Name) and one.value.id == "self")


def _literal(node: ast.expr) -> Any:
    """The value of a literal; of `frozenset(...)`, `set(...)` and `tuple(...)` of one, too."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords and len(node.args) < 2:
        makers = {"frozenset": frozenset, "set": set, "tuple": tuple, "list": list, "dict": dict}
        inner = _literal(node.args[0]) if node.args else ()
        return makers[node.func.id](inner) if node.func.id in makers and inner is not UNKNOWN else UNKNOWN
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return UNKNOWN


def descends(target: str, above: Collection[str]) -> bool | None:
    """Whether a target is one of some classes or a subclass of one; None where the text does not tell.

    above: whole names, as in {"mmalign.adapters.Adapter"}. Absent when there is no such target. A text can lie (a name
    bound again, a decorator): whoever calls the target asks the class itself first.
    """
    if target.partition(".")[0] in sys.stdlib_module_names:
        return False
    definition = definitions.find(target)
    return _descends(definition, above, definitions.DEEP) if definition else None


def _descends(definition: definitions.Definition, above: Collection[str], deep: int) -> bool | None:
    node = definition.node
    if f"{definition.module}.{node.name}" in above:
        return True
    if not isinstance(node, ast.ClassDef):
        return False
    verdicts = []
    for name in _bases(node):
        base = _base(definition, name, deep) if deep else None
        verdicts.append(_descends(base, above, deep - 1) if base else None)
    if True in verdicts:
        return True
    return None if None in verdicts else False


def summary(target: str) -> str:
    """The first line of a target's docstring; empty where there is none to read."""
    try:
        definition = definitions.find(target)
    except definitions.Absent:
        return ""
    text = (ast.get_docstring(definition.node) if definition else None) or ""
    return text.partition("\n")[0].rstrip(".")


def _arguments(definition: definitions.Definition, deep: int) -> Parameters | None:
    if isinstance(definition.node, ast.FunctionDef):
        return _parameters(definition.node.args, skip=0)
    methods = {node.name: node for node in definition.node.body if isinstance(node, ast.FunctionDef)}
    if "__init__" in methods:
        return _parameters(methods["__init__"].args, skip=1)
    if "__new__" in methods or definition.node.keywords:
        return None
    names = [ast.unparse(d.func if isinstance(d, ast.Call) else d) for d in definition.node.decorator_list]
    inherited = _inherited(definition, deep)
    if any(name.rpartition(".")[2] == "dataclass" for name in names):
        return None if inherited is None else inherited | _fields(definition.node)
    return inherited


def _parameters(args: ast.arguments, skip: int) -> Parameters | None:
    if args.kwarg:
        return None
    plain = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [*[None] * (len(plain) - len(args.defaults)), *args.defaults, *args.kw_defaults]
    both = list(zip([*plain, *args.kwonlyargs], defaults, strict=True))[skip:]
    return {arg.arg: _parameter(arg.annotation, default) for arg, default in both}


def _parameter(annotation: ast.expr | None, default: ast.expr | None) -> Parameter:
    return Parameter(None if default is None else ast.unparse(default), _type(annotation, default))


def _fields(node: ast.ClassDef) -> Parameters:
    lines = [item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
    own = [item for item in lines if "ClassVar" not in ast.dump(item)]
    return {ast.unparse(item.target): _parameter(item.annotation, item.value) for item in own}


_PLAIN = {
    "int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict, "tuple": tuple,
    "Sequence": Sequence, "Mapping": Mapping,
}  # fmt: skip


def _type(annotation: ast.expr | None, default: ast.expr | None = None) -> Any:
    """The type an annotation names, where it is made of plain ones; else Any. A default of None allows None."""
    kind = Any if annotation is None else _named_type(annotation)
    optional = isinstance(default, ast.Constant) and default.value is None
    return kind if kind is Any or not optional else kind | None


def _named_type(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return _PLAIN.get(node.id, Any)
    if isinstance(node, ast.Constant):
        return types.NoneType if node.value is None else Any
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left, right = _named_type(node.left), _named_type(node.right)
        return Any if Any in (left, right) else left | right
    if not (isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name)):
        return Any
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if node.value.id == "Literal":
        return Literal[tuple(one.value for one in inner if isinstance(one, ast.Constant))]
    outer = _PLAIN.get(node.value.id)
    if outer not in (list, tuple, dict, Sequence, Mapping):
        return Any
    return outer[tuple(... if ast.unparse(one) == "..." else _named_type(one) for one in inner)]


def _inherited(definition: definitions.Definition, deep: int) -> Parameters | None:
    """The arguments of the first base class whose text can be found."""
    assert isinstance(definition.node, ast.ClassDef)
    for base in _bases(definition.node):
        above = _base(definition, base, deep)
        return _arguments(above, deep - 1) if above and deep else None
    return {}


def _bases(node: ast.ClassDef) -> list[str]:
    """The names of base classes, but for those that have no arguments or attributes of ours."""
    names = [ast.unparse(base.value if isinstance(base, ast.Subscript) else base) for base in node.bases]
    return [name for name in names if name not in EMPTY]


def _base(definition: definitions.Definition, name: str, deep: int) -> definitions.Definition | None:
    """Where a base class is defined, named as in the text of its subclass: `Base`, or `package.module.Base`."""
    first, _, rest = name.partition(".")
    try:
        if not rest:
            return definitions.find(f"{definition.module}.{name}", deep - 1)
        module = _module_called(first, definition.module)
        return definitions.find(f"{module}.{rest}", deep - 1) if module else None
    except definitions.Absent:
        return None


def _module_called(name: str, module: str) -> str:
    """The module or package that a name means in the text of another; empty where it is none."""
    if (place := definitions.file_of(module)) is None:
        return ""
    for node in definitions.statements(definitions.tree(place).body):
        for alias in node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
            if alias.asname == name or (alias.asname is None and alias.name.split(".")[0] == name):
                above = f"{definitions.imported(node, module, place)}." if isinstance(node, ast.ImportFrom) else ""
                return above + (alias.name if alias.asname else name)
    return ""
