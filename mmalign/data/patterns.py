"""From a path, a folder, a pattern or a list of them to the files that are meant, in order."""

import re
from collections.abc import Iterator, Sequence

from mmalign.data import cache
from mmalign.errors import DataError
from mmalign.io import files

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand(path: str | Sequence[str], endings: Sequence[str]) -> list[str]:
    """The files of a path: itself, those below a folder, or those a pattern with * or {000..099} fits.

    endings: of the files looked for in folders. A DataError where there is none.
    """
    specs = [path] if isinstance(path, str) else path
    paths = [file for spec in specs for single in _expand_ranges(spec) for file in _matches(single, endings)]
    if not paths:
        raise DataError(f"no {' or '.join(endings)} files in {path}", at=str(path), fix="check the path, $MMALIGN_DATA")
    return paths


def _expand_ranges(spec: str) -> Iterator[str]:
    """A path for each number of `{000..099}`, as WebDataset's users know it."""
    match = RANGE.search(spec)
    if match is None:
        yield spec
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expand_ranges(spec[: match.start()] + f"{number:0{len(first)}}" + spec[match.end() :])


def _matches(spec: str, endings: Sequence[str]) -> list[str]:
    if files.is_url(spec):
        fs, remote_path = cache.filesystem(spec)
        if spec.endswith(tuple(endings)) and "*" not in spec:
            return [spec]
        patterns = [remote_path] if "*" in remote_path else [f"{remote_path.rstrip('/')}/**/*{end}" for end in endings]
        return sorted(fs.unstrip_protocol(path) for pattern in patterns for path in fs.glob(pattern))
    path = cache.path(spec)
    if "*" in path.name:
        return sorted(map(str, path.parent.glob(path.name)))
    if path.is_dir():
        return sorted(str(file) for file in path.rglob("*") if file.suffix in endings)
    return [str(path)] if files.exists(path) else []
