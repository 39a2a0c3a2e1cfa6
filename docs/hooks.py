"""What mkdocs builds beside the pages of this folder: see making/."""

from collections.abc import Mapping
from typing import Any

from making import api, cards, repository, rooms, settings, verbs
from mkdocs.structure.files import File, Files

MADE = (settings, cards, verbs, api, repository)


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are made."""
    for path, text in made().items():
        files.append(File.generated(config, path, content=text))
    return files


def made() -> Mapping[str, str]:
    """{path: Markdown} of all of them."""
    return {path: text for one in MADE for path, text in one.pages().items()}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Draws the rooms where a page asks for them."""
    return markdown.replace(rooms.MARK, rooms.figure()) if rooms.MARK in markdown else markdown
