"""Where each row of JSON and JSONL files lies: found by one pass over the bytes, without reading any row.

Letters: N rows, Q structural bytes (quotes and brackets) of a block.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mmalign.data import cache, sniff, splits, wrapped
from mmalign.errors import DataError
from mmalign.io import whole
from mmalign.io.limits import ROWS

BLOCK = 1 << 19  # bytes looked at together; more do not fit the nearest caches
BOM = b"\xef\xbb\xbf"
LINE = 1 << 20  # bytes of the first lines that are looked at
UNENDED = "correct that row; or fetch the file again, where it came over a network"
SHORT = 8  # bytes; only lines this short are looked at to see whether they are blank

Array = NDArray[Any]

_QUOTE, _BACKSLASH, _OPEN, _CLOSE = 1, 2, 3, 4
_KINDS = {'"': _QUOTE, "\\": _BACKSLASH, "[": _OPEN, "{": _OPEN, "]": _CLOSE, "}": _CLOSE}
_CLASS = bytes(_KINDS.get(chr(byte), 0) for byte in range(256))
_SPACE = np.isin(np.arange(256), list(b" \t\r\n"))


@dataclass(frozen=True)
class Index:
    """span_N2: the first byte of each row and the one behind its last, file by file; ends: rows up to each file's end.

    beside: keys of documents that stand beside their lists of rows, and are not read.
    """

    span_N2: Array
    ends: Array
    beside: list[str]


def index(paths: Sequence[Path], split: str | None = None) -> Index:
    """The rows of files. Cached until one of them changes. split: see `find`."""
    identities = [cache.identity(str(path)) for path in paths]
    key = hashlib.sha256(json.dumps([split, *identities]).encode()).hexdigest()[:32]
    found = functools.cache(lambda: [find(path, split) for path in paths])
    if len(paths) == 1:
        span_N2 = cache.array("spans", key, lambda: found()[0][0])
        ends = np.array([len(span_N2)])
    else:
        span_N2 = cache.array("spans", key, lambda: np.concatenate([rows for rows, _ in found()]))
        ends = cache.array("ends", key, lambda: np.cumsum([len(rows) for rows, _ in found()]))
    beside = cache.array("beside", key, lambda: np.array([name for _, names in found() for name in names], "U"))
    return Index(span_N2, ends, [str(name) for name in beside])


def find(path: Path, split: str | None = None) -> tuple[Array, list[str]]:
    """(span_N2 of a file, the keys beside its list), read once.

    A file that begins with `[` is a list, one with an object of several lines or around a list a document, any other
    has a row in each line. split: of a document's lists, refused elsewhere. A DataError where the file is no JSON, or
    a list is damaged or holds anything but objects.
    """
    with open(path, "rb") as source:
        head = source.read(sniff.HEAD)
        sniff.check_text(head, str(path))
        start = len(BOM) if head.startswith(BOM) else 0
        source.seek(start)
        first = head[start:].lstrip()[:1]
        if first == b"{" and wrapped.is_document(source) and (document := wrapped.find(source, path, split)):
            return document
        splits.refuse(split, str(path), "the file is no object with a list for each split")
        if first == b"[":
            _check_is_one(source, str(path))
            return _JsonList(path, start, start).find(source), []
        if first:
            _check_lines(source, str(path))
        return _line_spans(source, start, str(path)), []


def _check_is_one(source: IO[bytes], name: str) -> None:
    """A DataError where each line is a list. Leaves the source where it was."""
    start = source.tell()
    first, second = source.readline(LINE).strip(), source.readline(LINE).strip()
    source.seek(start)
    if first.endswith(b"]") and second.startswith(b"[") and second.endswith(b"]"):
        what = (
            f"each line is a list, and a row is an object: the file begins with {first[:40].decode(errors='replace')!r}"
        )
        raise DataError(what, at=name, fix="an object a line, with a list of turns under `messages` or `conversations`")


def _check_lines(source: IO[bytes], name: str) -> None:
    """A DataError where the first lines cannot be JSONL. Leaves the source where it was."""
    start = source.tell()
    lines = list(islice(filter(None, (line.strip() for line in iter(lambda: source.readline(LINE), b""))), 3))
    source.seek(start)
    if not any(line.startswith(b"{") for line in lines):
        what = f"neither JSON nor JSONL: the file begins with {lines[0][:40].decode(errors='replace')!r}"
        raise DataError(what, at=name, fix="a list of objects, or an object a line; a table is named .csv or .tsv")
    if all(line.endswith(b"},") for line in lines[:-1]) and len(lines) > 1:
        what = "the lines end in commas: a list without its brackets"
        raise DataError(what, at=name, fix="put [ in front of it and ] behind it, or take the commas away")


def _blocks(source: IO[bytes]) -> Iterator[Array]:
    """The rest of a file; the same memory is used for every block."""
    buffer = bytearray(BLOCK)
    while size := source.readinto(buffer):  # type: ignore[attr-defined]
        yield np.frombuffer(buffer, np.uint8, size)


def _line_spans(source: IO[bytes], start: int, name: str) -> Array:
    """span_N2 of lines; blank ones do not count."""
    spans: list[Array] = []
    at = line_start = start
    rows = 0
    for block in _blocks(source):
        end_N = np.flatnonzero(block == ord("\n")) + at
        spans.append(_not_empty(line_start, end_N))
        at += len(block)
        line_start = int(end_N[-1]) + 1 if len(end_N) else line_start
        rows += len(spans[-1])
        whole.check_size(rows, ROWS, name, more=True)
    spans.append(_not_empty(line_start, np.array([at])))
    span_N2 = np.concatenate(spans)
    size_N = span_N2[:, 1] - span_N2[:, 0]
    keep_N = np.ones(len(span_N2), bool)
    for row in np.flatnonzero(size_N <= SHORT):
        source.seek(int(span_N2[row, 0]))
        keep_N[row] = bool(source.read(int(size_N[row])).strip())
    return span_N2[keep_N]


def _not_empty(start: int, end_N: Array) -> Array:
    """span_N2 of the lines with something in them. start: of the first; end_N: the line feed behind each."""
    span_N2 = np.stack([np.concatenate([[start], end_N[:-1] + 1]), end_N], 1) if len(end_N) else np.zeros((0, 2))
    return span_N2[span_N2[:, 1] > span_N2[:, 0]].astype(np.int64)


@dataclass
class _JsonList:
    """The elements of a JSON list, found by counting brackets outside strings."""

    path: Path
    first: int  # the list's first byte
    at: int  # bytes before the block
    depth: int = 0
    in_string: bool = False
    escaped: bool = False  # the block before ended in a backslash that escapes the next byte
    closed: bool = False
    rows: int = 0
    starts: list[Array] = field(default_factory=list)
    ends: list[Array] = field(default_factory=list)

    def find(self, source: IO[bytes]) -> Array:
        for block in _blocks(source):
            self._block(block)
            self.at += len(block)
        start_N, end_N = np.concatenate(self.starts), np.concatenate(self.ends)
        if self.depth or self.in_string:
            what = f"the JSON list is cut off in or behind row {len(end_N)}, or has a quote or bracket too many there"
            raise DataError(what, at=str(self.path), fix=UNENDED)
        self._check_between(source, start_N, end_N)
        return np.stack([start_N, end_N], 1)

    def _block(self, block: Array) -> None:
        class_ = np.frombuffer(block.tobytes().translate(_CLASS), np.uint8)
        at_Q = np.flatnonzero(class_ != 0)
        class_Q = class_[at_Q]
        quotes_Q = np.cumsum((class_Q == _QUOTE) & ~self._escaped(at_Q, class_Q, len(block)))
        outside_Q = (class_Q >= _OPEN) & ((quotes_Q + self.in_string) % 2 == 0)
        self.in_string ^= bool(len(at_Q) and quotes_Q[-1] % 2)
        brackets, opens = at_Q[outside_Q], class_Q[outside_Q] == _OPEN
        depth = self.depth + np.cumsum(np.where(opens, 1, -1))
        self.starts.append(brackets[opens & (depth == 2)] + self.at)
        self.ends.append(brackets[~opens & (depth == 1)] + self.at + 1)
        self.rows += len(self.ends[-1])
        whole.check_size(self.rows, ROWS, str(self.path), more=True)
        self._check_gaps(block, self.ends[-1] - self.at, self.starts[-1] - self.at)
        if len(depth):
            if self.closed or (depth[:-1] <= 0).any() or depth[-1] < 0:
                raise self._error("there is more behind the end of the JSON list")
            self.depth = int(depth[-1])
            self.closed = not self.depth

    def _escaped(self, at_Q: Array, class_Q: Array, size: int) -> Array:
        """Which bytes a backslash escapes. In a run of backslashes, every second one is escaped itself."""
        at = np.flatnonzero(class_Q == _BACKSLASH)
        order = np.arange(len(at))
        is_first = np.diff(at_Q[at], prepend=-2) != 1
        rank = order - np.maximum.accumulate(np.where(is_first, order, 0))
        if self.escaped and len(at) and at_Q[at[0]] == 0:
            rank[rank == order] += 1  # the first run
        escapes = at[rank % 2 == 0]
        escaped_Q = np.zeros(len(at_Q) + 1, bool)
        escaped_Q[escapes + 1] = np.append(at_Q, size)[escapes + 1] == at_Q[escapes] + 1
        escaped_Q[0] = self.escaped and len(at_Q) and at_Q[0] == 0
        self.escaped = bool(len(escapes)) and int(at_Q[escapes[-1]]) == size - 1
        return escaped_Q[:-1]

    def _check_gaps(self, block: Array, ends: Array, starts: Array) -> None:
        """Between two elements of one block stands a comma, and nothing else but white space."""
        starts = starts[np.searchsorted(starts, ends[0]) :] if len(ends) else starts[:0]
        ends = ends[: len(starts)]
        size = starts - ends
        if not len(size):
            return
        first = np.cumsum(size) - size
        bytes_ = block[np.repeat(ends - first, size) + np.arange(size.sum())]
        solid = ~_SPACE[bytes_]
        commas = np.add.reduceat(solid, first) if size.all() else size
        if (commas != 1).any() or (bytes_[solid] != ord(",")).any():
            raise self._error("something between the rows is no object")

    def _check_between(self, source: IO[bytes], start_N: Array, end_N: Array) -> None:
        """The same before the first row, behind the last, and where a block ends between two."""
        boundary_rows = np.flatnonzero((end_N[:-1] - 1 - self.first) // BLOCK != (start_N[1:] - self.first) // BLOCK)
        gaps = [(int(end_N[row]), int(start_N[row + 1]), b",") for row in boundary_rows]
        if len(start_N):
            gaps += [(self.first, int(start_N[0]), b"["), (int(end_N[-1]), self.at, b"]")]
        else:
            gaps.append((self.first, self.at, b"[]"))
        for start, end, expected in gaps:
            source.seek(start)
            between = b"".join(source.read(end - start).split())
            if between == b",]":
                raise self._error("a comma stands behind the last row")
            if between != expected:
                raise self._error("something beside the rows is no object")

    def _error(self, what: str) -> DataError:
        fix = "a list of objects, or JSONL: an object a line"
        return DataError(f"{what}, near byte {self.at:,}", at=str(self.path), fix=fix)
