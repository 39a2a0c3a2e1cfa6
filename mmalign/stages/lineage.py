"""A finished stage and everything it rests on."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmalign.pipeline import task


def ancestors(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A stage and everything it rests on, the most basic first, each once."""
    seen: set[Path] = set()

    def walk(place: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
        if place in seen:
            return
        seen.add(place)
        about = task.done(place)
        for _, other in about["reads"]:
            yield from walk(place.parent / other)
        yield place, about

    yield from walk(folder)


def unique(walks: Iterable[Iterator[tuple[Path, dict[str, Any]]]]) -> list[tuple[Path, dict[str, Any]]]:
    return list({place: (place, about) for walk in walks for place, about in walk}.values())
