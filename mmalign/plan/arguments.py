"""What a card's class says of its arguments, read from its text: nothing is imported.

Docstrings here say `name: what it is. other, another: what they are.`; that of a base class counts for what it takes.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmalign.plan import signatures


@dataclass(frozen=True)
class Argument:
    """An argument of a class. default: as its text has it; None: it must be given. about: empty where nobody says.

    kind: its type, see io/document.py; Any where the text does not tell a plain one.
    """

    name: str
    default: str | None
    about: str
    kind: Any = field(default=Any, compare=False)


def of(target: str) -> list[Argument] | None:
    """The arguments of a class or function in their order; None where its text does not tell. Absent: there is none."""
    if (parameters := signatures.parameters(target)) is None:
        return None
    said: dict[str, str] = {}
    for text in signatures.docstrings(target):
        said = _said(text, parameters) | said
    return [Argument(name, one.default, said.get(name, ""), one.kind) for name, one in parameters.items()]


def _said(text: str, names: Mapping[str, Any]) -> dict[str, str]:
    """{argument: what a docstring says of it}."""
    opening = re.compile(r"(?:^|(?<=[.:;)] ))(\w+(?:, \w+)*): ")
    said: dict[str, str] = {}
    for paragraph in _paragraphs(text):
        openings = [one for one in opening.finditer(paragraph) if _opens(one, names)]
        ends = [*(after.start() for after in openings[1:]), len(paragraph)][: len(openings)]
        for found, end in zip(openings, ends, strict=True):
            said = dict.fromkeys(found[1].split(", "), paragraph[found.end() : end].strip()) | said
    return said


def _opens(opening: re.Match[str], names: Mapping[str, Any]) -> bool:
    """Whether `word: ` begins an argument: one of these, or at the start of a sentence of another class's."""
    words = opening[1].split(", ")
    return any(word in names for word in words) or (opening.start() > 1 and opening.string[opening.start() - 2] == ".")


def _paragraphs(text: str) -> Iterator[str]:
    """Each in one line."""
    yield from (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
