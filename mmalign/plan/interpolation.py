"""`${...}` in recipes: other keys of the recipe, and of the environment MMALIGN_* alone.

OmegaConf resolves more (`oc.env` of any variable, `oc.decode`, whatever the program around us has registered). Its
resolvers belong to the whole process, so they stay as they are: a recipe that names another one is refused before
OmegaConf sees it, and a value that has been resolved, or comes from a file that holds none, is made `literal` to it.
"""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from mmalign.io import environment


def resolved(value: Any) -> bool:
    """Whether there is nothing to resolve in a value."""
    return not isinstance(value, str) or "${" not in value


def refused(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, the `${...}`) of all that a recipe may not ask for."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from refused(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from refused(inner, f"{key}.{number}".lstrip("."))
    elif not resolved(value):
        yield from ((key, asked) for asked in _resolvers(value) if not _ours(asked))


def _ours(asked: str) -> bool:
    return environment.REFERENCE.fullmatch(asked) is not None


def unset(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, variable) of what is asked of the environment and is not there."""
    if isinstance(value, (dict, list)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for name, inner in pairs:
            yield from unset(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, str) and (name := environment.lacking(value)):
        yield key, name


def kept(value: Any, inside: bool = False) -> Any:
    """A recipe whose arguments keep `${oc.env:MMALIGN_NAME}` as it is written: their parts are handed its value.

    Elsewhere it is a setting (a number, a name, a folder), known from here on like any other.
    """
    if isinstance(value, dict):
        return {key: kept(inner, inside or key == "args") for key, inner in value.items()}
    if isinstance(value, list):
        return [kept(inner, inside) for inner in value]
    return environment.REFERENCE.sub(lambda one: "\\" + one[0], value) if inside and isinstance(value, str) else value


def _resolvers(text: str) -> Iterator[str]:
    """Every `${resolver:...}` in a text, those inside others too; none where it is no text that OmegaConf resolves."""
    from omegaconf.grammar_parser import parse  # 30 ms, for the recipes that need it

    try:
        waiting: list[Any] = [parse(text)]
    except OmegaConfBaseException:  # which it says itself
        return
    while waiting:
        node = waiting.pop()
        if type(node).__name__ == "InterpolationResolverContext":
            yield node.getText()
        waiting += list(node.getChildren()) if hasattr(node, "getChildren") else []


def literal(value: Any) -> Any:
    """A nest of values whose texts OmegaConf takes as they are."""
    if isinstance(value, dict):
        return {key: literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [literal(inner) for inner in value]
    return value if resolved(value) else re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
