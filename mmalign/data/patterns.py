"""From a path, a folder, a pattern or a list of them to the files that are meant, in order."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmalign.data import cache, splits
from mmalign.errors import DataError
from mmalign.io import files

# What tools write beside data: `datasets` of what it saved, img2dataset of what it fetched
BESIDE = re.compile(r"(dataset_infos?|dataset_dict|state)\.json|.*_stats\.json")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand(path: str | Sequence[str], endings: Sequence[str], split: str | None = None) -> list[str]:
    """The files of a path: itself, those below a folder, or those a pattern with * or {000..099} fits.

    Hidden files of a folder, as macOS leaves them, do not count. endings: of the files looked for in folders. split: of
    folders whose files are named after splits; of several folders it is that of each. A DataError where there is none.
    """
    specs = [path] if isinstance(path, str) else list(path)
    places = [place for spec in specs for single in _expand_ranges(spec) for place in _matches(single, endings)]
    folders = {place: below(place, endings) for place in places if is_folder(place, endings)}
    paths = [file for place in places for file in folders.get(place, [place])]
    if folders:
        if split is not None and len(folders) < len(set(places)):
            splits.refuse(split, str(path), "the path names files beside folders")
        name_of = {file: name for names in folders.values() for file, name in names.items()}
        of_split = set(splits.choose(name_of, ", ".join(specs), split))
        paths = [file for file in paths if file in of_split or file not in name_of]
    else:
        splits.refuse(split, str(path), "the path names files, not a folder of several splits")
    if not paths:
        is_file = len(specs) == 1 and not (is_folder(specs[0], endings) or "*" in specs[0] or RANGE.search(specs[0]))
        what = f"no file {specs[0]}" if is_file else f"no {', '.join(endings)} files in {path}"
        raise DataError(what, at=str(path), fix="check the path, $MMALIGN_DATA")
    return paths


def is_folder(spec: str, endings: Sequence[str]) -> bool:
    """Whether a spec is a folder: a remote one is whatever has none of the endings."""
    if files.is_url(spec):
        return not ("*" in spec or RANGE.search(spec) or ends(spec, endings))
    return cache.path(spec).is_dir()


def ends(name: str, endings: Sequence[str]) -> bool:
    """Whether a file's name has one of the endings, in letters of any size."""
    return name.lower().endswith(tuple(endings))


def below(folder: str, endings: Sequence[str]) -> dict[str, str]:
    """{file: its path below the folder} of those that end so, in order; not hidden ones, nor what is written beside."""
    if files.is_url(folder):
        try:
            fs, inside = cache.filesystem(folder)
            places = [path for end in endings for path in fs.glob(f"{inside.rstrip('/')}/**/*{end}")]
        except Exception as err:  # file systems of fsspec raise whatever their libraries do
            what = f"cannot read {folder}: {err or type(err).__name__}"
            raise DataError(what, at=folder, fix="check the URL") from err
        name_of = {fs.unstrip_protocol(path): path.removeprefix(inside).lstrip("/") for path in places}
    else:
        place = cache.path(folder)
        within = [file for file in place.rglob("*") if ends(file.name, endings) and not file.is_dir()]
        name_of = {str(file): file.relative_to(place).as_posix() for file in within}
    return {file: name for file, name in sorted(name_of.items()) if not (is_hidden(name) or _is_beside(name))}


def _is_beside(path: str) -> bool:
    return bool(BESIDE.fullmatch(path.rpartition("/")[2]))


def is_hidden(path: str) -> bool:
    """Whether a path below a folder is a hidden file, or in a hidden folder: `._a.parquet`, `.cache/a.parquet`."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


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
    """The files and folders that a path or a pattern with * means."""
    if is_folder(spec, endings):
        return [spec]
    if files.is_url(spec):
        if "*" not in spec:
            return [spec]
        fs, inside = cache.filesystem(spec)
        return sorted(fs.unstrip_protocol(path) for path in fs.glob(inside))
    path = cache.path(spec)
    if "*" in spec:
        first = next(number for number, part in enumerate(path.parts) if "*" in part)
        above, pattern = Path(*path.parts[:first]), "/".join(path.parts[first:])
        return sorted(str(file) for file in above.glob(pattern) if not is_hidden(file.relative_to(above).as_posix()))
    return [str(path)] if files.exists(path) else []
