"""Where a benchmark's files lie: found by looking, in one of the layouts that exist in the wild."""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from mmalign.errors import DataError
from mmalign.io import files

FEW = 5  # names in a message
DEPTH = 2  # folders below the given one in which a file is still found: hf/data/x.parquet


class DataLocation:
    """A folder or one file, local or behind an fsspec URL; DataError where there is none.

    root: the path or URL; folder: itself, or the one its file lies in.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.remote = files.is_url(spec)
        self.root = spec.rstrip("/") if self.remote else str(files.local(spec) or Path(spec))
        if not self.exists(self.root):
            raise DataError(f"no such file or folder: {spec}", fix="name the folder with the benchmark's files")
        self.is_file = self._is_file()
        self.folder = os.path.dirname(self.root) if self.is_file else self.root

    def _is_file(self) -> bool:
        if not self.remote:
            return Path(self.root).is_file()
        fs, inside = _filesystem(self.root)  # to HTTP everything is a file
        return bool(os.path.splitext(inside)[1]) and bool(fs.isfile(inside))

    def find(self, pattern: str) -> list[str]:
        """The files a pattern matches in the nearest level of folders that has any; sorted."""
        if self.is_file:
            return [self.root] if fnmatch(os.path.basename(self.root), pattern.rsplit("/", 1)[-1]) else []
        return next(filter(None, (self._glob("*/" * depth + pattern) for depth in range(DEPTH + 1))), [])

    def exists(self, path: str) -> bool:
        if not self.remote:
            return os.path.exists(path)
        fs, inside = _filesystem(path)
        return bool(fs.exists(inside))

    def _glob(self, pattern: str) -> list[str]:
        if not self.remote:
            return sorted(os.path.join(self.root, name) for name in glob.glob(pattern, root_dir=self.root))
        fs, inside = _filesystem(self.root)
        return sorted(fs.unstrip_protocol(name) for name in fs.glob(f"{inside}/{pattern}"))


def _filesystem(path: str) -> tuple["fsspec.AbstractFileSystem", str]:  # type: ignore[name-defined]  # noqa: F821
    from fsspec.core import url_to_fs  # only for URLs

    return url_to_fs(path)  # type: ignore[no-any-return]


# Which files belong together where a pattern matches several: the parts of a parquet file, files of any kind in one
# folder, or those of several folders.
Several = Literal["parts", "files", "folders"]


@dataclass(frozen=True)
class Layout:
    """One way in which the same benchmark is handed around: the pattern of each file it needs, by role."""

    name: str  # LLaVA, official, parquet, TSV
    needs: Mapping[str, str]
    optional: Mapping[str, str]  # files that some questions can do without
    several: Several = "parts"

    def find(self, location: DataLocation) -> "LayoutFiles | None":
        """The files that lie there; None where a needed one is missing."""
        needed = {role: location.find(pattern) for role, pattern in self.needs.items()}
        if not all(needed.values()):
            return None
        optional = {role: location.find(pattern) for role, pattern in self.optional.items()}
        return LayoutFiles(self.name, needed | optional, self.several)


@dataclass(frozen=True)
class LayoutFiles:
    """The files of one layout that are there."""

    layout: str
    paths: Mapping[str, list[str]]  # by role
    several: Several = "parts"

    def has(self, role: str) -> bool:
        return bool(self.paths.get(role))

    def one(self, role: str) -> str:
        """The file of a role; the first where there are several."""
        return self.paths[role][0]

    def __str__(self) -> str:
        names = [os.path.basename(paths[0]) + " ..." * (len(paths) > 1) for paths in self.paths.values() if paths]
        return f"{self.layout} layout: {', '.join(names)}"


_SHARD = re.compile(r"-of-(\d+)\.parquet$")


def _check_shards(layout_files: LayoutFiles) -> None:
    """DataError where a file that was cut into numbered parts lacks some of them."""
    for paths in layout_files.paths.values():
        shards_of: dict[str, list[str]] = {}
        for path in paths:
            if _SHARD.search(path):
                shards_of.setdefault(re.sub(r"\d+(?=-of-)", "", path), []).append(path)
        for shards in shards_of.values():
            total = int(_SHARD.findall(shards[0])[0])
            if len(shards) < total:
                what = f"{len(shards)} of {total} parts are there of {os.path.basename(shards[0])}"
                raise DataError(what, at=os.path.dirname(shards[0]), fix="fetch the others")


def _check_choice(layout_files: LayoutFiles, location: DataLocation) -> None:
    """DataError where several files match and nothing says which is meant: another split's, another folder's."""
    for role, paths in layout_files.paths.items():
        together = layout_files.several != "parts" or all(path.endswith(".parquet") for path in paths)
        folders = {os.path.dirname(path) for path in paths}
        if (len(paths) > 1 and not together) or (len(folders) > 1 and layout_files.several != "folders"):
            names = ", ".join(path.removeprefix(location.root).lstrip("/") for path in paths[:FEW])
            more = f" and {len(paths) - FEW} more" if len(paths) > FEW else ""
            what = f"{len(paths)} files could be the {role}: {names}{more}"
            raise DataError(what, at=location.root, fix=f"say which: --data {paths[0]}, or its folder")


def find_layout(location: DataLocation, layouts: Sequence[Layout], benchmark: str) -> LayoutFiles:
    """The first layout whose files are all there; DataError with what each of them would need."""
    for layout in layouts:
        if layout_files := layout.find(location):
            _check_shards(layout_files)
            _check_choice(layout_files, location)
            return layout_files
    needs = "; ".join(dict.fromkeys(f"{' + '.join(one.needs.values())} ({one.name})" for one in layouts))
    raise DataError(f"no files of {benchmark} in {location.spec}", at=location.root, fix=f"put there one of: {needs}")
