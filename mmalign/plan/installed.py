"""What installed packages bring: entry points of our groups, and folders of cards. Nothing of them is imported."""

import logging
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mmalign.errors import CardError
from mmalign.plan import definitions

POINT = re.compile(r"\s*[^\W\d]\w*([.:/][\w-]+)*/?\s*(\[[^\]]*\]\s*)?")  # of a class, or of a folder of cards
log = logging.getLogger(__name__)


def shelves() -> Iterator[tuple[str, Path]]:
    """(owner, folder) of the cards that packages bring: an entry point in `mmalign.cards` names the folder."""
    for owner, points in packages().items():
        for point in points:
            if point.group == "mmalign.cards":
                folder = definitions.folder_of(point.value.replace(":", ".").replace("/", "."))
                if folder is None:
                    at, fix = f"entry point {point.name!r} of {owner}", "a folder with vision/, adapters/, ... in it"
                    raise CardError(f"{owner} has no folder {point.value} of cards", at=at, fix=fix)
                yield owner, folder


def parts(family: str) -> Iterator[tuple[str, str, Any]]:
    """(name, owner, entry point) of every class of a family."""
    for owner, points in packages().items():
        for point in points:
            if point.group == f"mmalign.{family}":
                yield point.name, owner, point


@cache
def packages() -> dict[str, list[Any]]:
    """{package and version: its entry points of our groups}, without importing any of them.

    importlib.metadata is asked only about packages whose entry_points.txt names one of our groups: to ask it about
    all of them takes as long as the rest of a command.
    """
    points_of: dict[str, list[Any]] = {}
    for place in _with_parts():
        from importlib.metadata import PathDistribution

        dist = PathDistribution(place)
        try:
            points = [point for point in dist.entry_points if point.group.startswith("mmalign.")]
            owner = f"{dist.metadata['Name']} {dist.version}"
        except Exception as err:  # its text is taken apart without a look at what it holds
            log.warning("the package in %s is damaged, and its parts are not known: %s", place, err)
            continue
        points_of.setdefault(owner, [point for point in points if _usable(point, owner)])
    return points_of


def _usable(point: Any, owner: str) -> bool:
    """Whether an entry point is `name = package.module:Class`; one that is not is told, and the others stay."""
    if point.name.strip() and POINT.fullmatch(point.value):
        return True
    log.warning("%s: its entry point %r is no package.module:Class: %r", owner, point.name, point.value)
    return False


def _with_parts() -> Iterator[Path]:
    """Metadata folders of installed packages that bring parts; the first of a name hides the others."""
    seen: set[str] = set()
    for folder in dict.fromkeys(sys.path):
        try:
            names = sorted(name for name in os.listdir(folder or ".") if name.endswith((".dist-info", ".egg-info")))
        except OSError:
            continue  # a zip file, or not there
        for name in names:
            package = name.split("-")[0].removesuffix(".egg").lower()
            if package not in seen:
                seen.add(package)
                place = Path(folder) / name
                if "[mmalign." in _content(place / "entry_points.txt"):
                    yield place


def _content(place: Path) -> str:
    try:
        return place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
