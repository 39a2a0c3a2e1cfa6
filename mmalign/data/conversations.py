"""Conversations in a JSON list or a JSONL file, as LLaVA and Cambrian have them, with images in a folder or archive."""

import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from mmalign.data import cache, strict
from mmalign.data.reasons import Unusable, check_size
from mmalign.data.rows import Rows
from mmalign.data.spans import spans
from mmalign.io.limits import ROW_BYTES


class Conversations(Rows):
    """Each row: `id`, `image` (a path or a list of them, absent for text only) and `conversations`, a list of
    {from: human | gpt | system, value}; or `messages`, a list of {role, content}.

    The file is never held in memory: rows are found by an index, made at first sight and cached.

    path: .json, .jsonl, or either with .gz; local or an fsspec URL (those are copied once). images: a folder, an
    archive (.tar, .zip), a URL, or several of them; None: the folder the file lies in. quarantine: a file that
    `mmalign data check --quarantine` wrote.
    """

    def __init__(self, path: str, images: str | Sequence[str] | None = None, quarantine: str | None = None) -> None:
        self.path = path
        self.local_path = cache.plain(path)
        self.span_N2 = spans(self.local_path)
        self.file = os.open(self.local_path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.file)
        super().__init__(len(self.span_N2), images or cache.parent(path), quarantine)

    def raw(self, row: int) -> Mapping[str, Any]:
        start, end = map(int, self.span_N2[row])
        check_size(f"row {row}", end - start, ROW_BYTES)
        line = os.pread(self.file, end - start, start)  # safe from several threads, unlike seek and read
        if len(line) < end - start:
            raise Unusable("json", f"row {row} is not there any more: the file was cut while it is read", at=self.path)
        return strict.parse(line, f"row {row}")
