"""Tables of Markdown, and the demand that every line of a reference says something."""

import ast
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


class SilentError(Exception):
    """A setting, an argument, a verb or an option that nobody has said a word about."""


def said(text: str | None, of: str) -> str:
    """The text, or a SilentError that names what it should be about."""
    if not (text or "").strip():
        raise SilentError(f"{of} has no line: say what it means where it is defined")
    return str(text).strip()


def opening(place: Path, of: str) -> str:
    """What a module's first paragraph says, read and not imported."""
    return said(ast.get_docstring(ast.parse(place.read_text(encoding="utf-8"))), of).split("\n\n")[0].replace("\n", " ")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; a column that is empty in every row is left out."""
    rows = [*rows]
    kept = [n for n, _ in enumerate(columns) if n == 0 or any(row[n] for row in rows)]
    lines = [[columns[n] for n in kept], ["---"] * len(kept), *([row[n] for n in kept] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(value: Any) -> str:
    """A value as code within a cell; nothing for nothing."""
    text = str(value).replace("\n", " ")
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""


def prose(text: str) -> str:
    """A sentence of a docstring or comment within a cell: no mark of it is taken for HTML, a table's or Markdown's."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(one.replace("|", "\\|") if one.startswith("`") else _plain(one) for one in parts)


def _plain(text: str) -> str:
    text = re.sub(r"([\\*_\[\]{}|#])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"https?://\w[\w-]*\.[^\s)&,;]+(?<![.:])", lambda url: f"<{url[0].replace(chr(92), '')}>", text)


def link(url: str) -> str:
    """An address as a short link: an arXiv number, else the host; nothing for nothing."""
    if not url:
        return ""
    arxiv = re.search(r"arxiv\.org/abs/([\d.]+)", url)
    return f"[{f'arXiv {arxiv[1]}' if arxiv else url.split('/')[2]}]({url})" if "://" in url else prose(url)


def papers(text: str) -> tuple[str, str]:
    """(what is said, what of it is about the papers' values): sentences and brackets that name a paper."""
    inside = re.findall(r"\(([^()]*\bpapers?\b[^()]*)\)", text)
    rest = re.sub(r"\s*\([^()]*\bpapers?\b[^()]*\)", "", text)
    sentences = re.split(r"(?<=[.;])\s+(?=[A-Z\d])", rest)
    about = [one for one in sentences if re.search(r"\bpapers?\b", one) and len(sentences) > 1]
    kept = " ".join(one for one in sentences if one not in about)
    return kept, "this is the paper's" if [*inside, *about] == ["the paper"] else " ".join([*inside, *about])
