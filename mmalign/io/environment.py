"""`${oc.env:MMALIGN_NAME}` in arguments stays as it is written until it is used: no file and no log has its value."""

import os
import re
from collections.abc import Iterator
from typing import Any

REFERENCE = re.compile(r"\$\{\s*oc\.env\s*:\s*(MMALIGN_\w+)\s*(?:,\s*([^${}\[\]]*?)\s*)?\}")
ALLOW_CODE = "MMALIGN_ALLOW_CODE"  # 1: as --allow-code, see plan/trust.py
SHORT = 4  # characters; what is shorter would be found, and hidden, in every line of a log


def expanded(value: Any) -> Any:
    """A nest of values with what the environment holds; a variable that is not set stays as it is written."""
    if isinstance(value, str):
        return REFERENCE.sub(_value, value)
    if isinstance(value, dict):
        return {key: expanded(inner) for key, inner in value.items()}
    return [expanded(inner) for inner in value] if isinstance(value, list) else value


def _value(reference: re.Match[str]) -> str:
    return os.environ.get(reference[1], reference[0] if reference[2] is None else reference[2])


def values(value: Any) -> dict[str, str]:
    """{reference: what it stands for} of all in a nest of values."""
    return {reference[0]: _value(reference) for reference in _references(value)}


def lacking(text: str) -> str:
    """The first variable of a text that is neither set nor has a default; empty where there is none."""
    unset = (one[1] for one in _references(text) if one[2] is None and one[1] not in os.environ)
    return next(unset, "")


def _references(value: Any) -> Iterator[re.Match[str]]:
    if isinstance(value, str):
        yield from REFERENCE.finditer(value)
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _references(inner)


def hidden(text: str, known: dict[str, str]) -> str:
    """A text for a log, with the references in place of their values. known: of `values`."""
    for reference, own in known.items():
        text = text.replace(own, reference) if len(own) >= SHORT else text
    return text
