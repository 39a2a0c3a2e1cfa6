"""From a path, a folder, a pattern or a list of them to the files that are meant, in order."""

import re
from collections.abc import Iterator, Sequence

from mmalign.data import kept
from mmalign.errors import DataError
from mmalign.io import files

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def found(path: str | Sequence[str], endings: Sequence[str]) -> list[str]:
    """The files of a path: itself, those below a folder, or those a pattern with * or {000..099} fits.

    endings: of the files looked for in folders. A DataError where there is none.
    """
    specs = [path] if isinstance(path, str) else path
    places = [place for spec in specs for one in _counted(spec) for place in _each(one, endings)]
    if not places:
        raise DataError(f"no {' or '.join(endings)} files in {path}", at=str(path), fix="check the path, $MMALIGN_DATA")
    return places


def _counted(spec: str) -> Iterator[str]:
    """`{000..099}` written out, as WebDataset's users know it."""
    hit = RANGE.search(spec)
    if hit is None:
        yield spec
        return
    first, last = hit.groups()
    for number in range(int(first), int(last) + 1):
        yield from _counted(spec[: hit.start()] + f"{number:0{len(first)}}" + spec[hit.end() :])


def _each(spec: str, endings: Sequence[str]) -> list[str]:
    if files.is_url(spec):
        fs, inside = kept.filesystem(spec)
        if spec.endswith(tuple(endings)) and "*" not in spec:
            return [spec]
        patterns = [inside] if "*" in inside else [f"{inside.rstrip('/')}/**/*{end}" for end in endings]
        return sorted(fs.unstrip_protocol(place) for pattern in patterns for place in fs.glob(pattern))
    place = kept.path(spec)
    if "*" in place.name:
        return sorted(map(str, place.parent.glob(place.name)))
    if place.is_dir():
        return sorted(str(below) for below in place.rglob("*") if below.suffix in endings)
    return [str(place)] if files.exists(place) else []
