"""Conversations in JSON and JSONL files, as LLaVA and Cambrian have them, with images in a folder or archive."""

import bisect
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.data import cache, patterns, spans, splits, strict
from mmalign.data.reasons import Unusable, check_size
from mmalign.data.rows import Rows
from mmalign.io import files
from mmalign.io.limits import ROW_BYTES

PLAIN = (".json", ".jsonl", ".ndjson")
ENDINGS = (*PLAIN, *(f"{ending}.gz" for ending in PLAIN))
HELD = 64  # files that are held open; of more, each is opened when it is read


class Conversations(Rows):
    """Each row: `id`, `image` (a path, a list of them, or base64; absent for text only) and `conversations`, a list of
    {from: human | gpt | system, value}; or `messages`, a list of {role, content}. A row's own `system` is its system
    turn; flags of a turn (`loss`, `weight`, ...) say how much it is trained.

    A file is a list of rows, has a row in each line, or is one object: a row, or around a list of rows. None is ever
    held in memory: rows are found by an index, made at first sight and cached.

    path: .json, .jsonl, or either with .gz; a folder of them, a pattern with * or {000..099}, or a list; local or
    fsspec URLs (those are copied once). images: a folder, an archive (.tar, .zip), a URL, or several of them; None: the
    folder itself, or the one the file lies in. quarantine: a file that `mmalign data check --quarantine` wrote. split:
    of a folder with `train.json` and `test.json`, or of an object {"train": [...], "test": [...]}.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        images: str | Sequence[str] | None = None,
        quarantine: str | None = None,
        split: str | None = None,
    ) -> None:
        one = isinstance(path, str) and _is_file(path)
        self.paths = [str(path)] if one else patterns.expand(path, ENDINGS, split)
        self.local_paths = list(map(cache.plain, self.paths))
        self.index = spans.index(self.local_paths, split if one else None)
        self.ends = self.index.ends.tolist()
        beside = ", ".join(self.index.beside)
        told = [f"beside the list of rows stand {beside}, which are not read"] if beside else []
        self.remarks = [*splits.missing(self.paths), *told]
        self.held = list(map(self._opened, self.local_paths)) if len(self.local_paths) <= HELD else []
        at = path if isinstance(path, str) else self.paths[0]
        folder = at if isinstance(path, str) and patterns.is_folder(path, ENDINGS) else cache.parent(self.paths[0])
        super().__init__(len(self.index.span_N2), images or folder, quarantine, at)

    def raw(self, row: int) -> Mapping[str, Any]:
        start, end = map(int, self.index.span_N2[row])
        check_size(f"row {row}", end - start, ROW_BYTES)
        number = bisect.bisect_right(self.ends, row)
        line = self._read(number, start, end)
        if len(line) < end - start:
            what = f"row {row} is not there any more: the file was cut while it is read"
            raise Unusable("json", what, at=self.paths[number])
        return strict.parse(line, f"row {row}")

    def _read(self, number: int, start: int, end: int) -> bytes:
        """Bytes of a file, safe from several threads, unlike seek and read."""
        if self.held:
            return os.pread(self.held[number], end - start, start)
        try:
            with open(self.local_paths[number], "rb") as source:
                return os.pread(source.fileno(), end - start, start)
        except OSError as err:
            raise Unusable("unreadable", f"{self.paths[number]}: {err.strerror}", at=self.paths[number]) from err

    def _opened(self, path: Path) -> int:
        file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, file)
        return file


def _is_file(path: str) -> bool:
    """Whether a path is no folder, no pattern and no range; one that is not there is a file."""
    if patterns.RANGE.search(path) or "*" in path:
        return False
    if files.is_url(path):
        return "." in path.rpartition("/")[2]
    return not cache.path(path).is_dir()
