"""Where the rows lie in a JSON document that is an object: one row over many lines, or a list of rows inside.

`{"data": [...]}`, `{"data": {"rows": [...]}}`, `{"train": [...], "test": [...]}`, and what `jq` writes: one object
behind the other. The document is read once, a piece at a time.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mmalign.data import splits
from mmalign.data.elements import JsonReader
from mmalign.data.rows import CAPTIONS, IMAGES, TURNS
from mmalign.errors import DataError
from mmalign.io import whole
from mmalign.io.limits import ROWS

DEEP = 3  # objects inside each other in which a list of rows is looked for
LINE = 1 << 24  # bytes of a first line that is looked at on its own
SHOWN = 6  # keys in a message
FIX = "a list of objects, or JSONL: an object a line"

Spans = NDArray[np.int64]


def is_document(source: IO[bytes]) -> bool:
    """Whether what begins with `{` is one document over many lines or around a list, and not a row in each line.

    Leaves the source where it was.
    """
    start = source.tell()
    try:
        line, second = _lines(source)
        if len(line) == LINE and not line.endswith(b"\n"):
            return True
        row = _parsed(line)
        if isinstance(row, dict):
            nested = [isinstance(value, (list, dict)) for value in row.values()]
            return not second and any(nested) and (all(nested) or not _is_row(row))
        return bool(second) and row is _OPEN
    finally:
        source.seek(start)


def _lines(source: IO[bytes]) -> tuple[bytes, bytes]:
    """The first line and the next one that is not blank, as far as they are looked at."""
    return source.readline(LINE), next((text for text in iter(lambda: source.readline(LINE), b"") if text.strip()), b"")


_OPEN = object()  # a text that ends before its JSON does


def _parsed(line: bytes) -> Any:
    """The JSON in a line; _OPEN where the line ends too early, None where it is wrong before its end."""
    text = line.decode("utf-8", errors="replace").strip()
    try:
        return json.loads(text, strict=False)
    except json.JSONDecodeError as err:
        return _OPEN if err.pos >= len(text) else None
    except (ValueError, RecursionError):
        return None


def _is_row(keys: Any) -> bool:
    """Whether an object with these keys is a row itself."""
    return any(key in keys for key in TURNS) or (
        any(key in keys for key in CAPTIONS) and any(key in keys for key in IMAGES)
    )


def _is_turn(value: Any) -> bool:
    """Whether an element of a list is a turn, and the list a conversation."""
    return isinstance(value, dict) and ({"from", "value"} <= value.keys() or {"role", "content"} <= value.keys())


def find(source: IO[bytes], path: Path, split: str | None) -> tuple[Spans, list[str]] | None:
    """(span_N2, the keys that stand beside the list of rows) of a document; None where it is JSONL of a damaged row.

    split: of the lists that are there, by its key. A DataError for a document whose rows are not told plainly.
    """
    start = source.tell()
    document = _Document(_Places(source, str(path), start=start), str(path))
    try:
        document.read()
    except DataError:
        source.seek(start)
        if isinstance(_parsed(_lines(source)[1]), dict):
            source.seek(start)
            return None
        raise
    return document.rows(split)


@dataclass
class _Places(JsonReader):
    """A reader that knows at which byte it is."""

    start: int = 0  # the byte at which the text began, then of the mark
    mark: int = 0  # where in the text `start` is
    decoder: json.JSONDecoder = field(default_factory=lambda: json.JSONDecoder(strict=False))  # rows are told later

    def place(self) -> int:
        """The byte of the next character."""
        self.peek()
        return self.behind()

    def behind(self) -> int:
        """The byte behind what was read last."""
        self.start += len(self.text[self.mark : self.at].encode())
        self.mark = self.at
        return self.start

    def more(self) -> bool:
        self.behind()
        self.mark = 0
        return super().more()


@dataclass
class _Document:
    """What stands at which byte: every object at the top, and every list of objects inside the first."""

    reader: _Places
    path: str
    objects: list[tuple[int, int]] = field(default_factory=list)
    lists: dict[str, Spans] = field(default_factory=dict)  # by the keys that lead there, with dots
    beside: list[str] = field(default_factory=list)  # other keys
    inner_row: str = ""  # the first key under which a row lies
    last: Any = None  # the value read last
    holds_turns: bool = False  # whether the list read last begins with a turn
    packed: set[str] = field(default_factory=set)  # keys at the top with an object, or a list of anything but objects

    def read(self) -> None:
        reader = self.reader
        start = reader.place()
        top = self._object("", 0)
        self.objects.append((start, self.reader.behind()))
        while (character := reader.peek()) == "{":
            self.objects.append(self._value())
            whole.check_size(len(self.objects), ROWS, self.path, more=True)
        if character:
            raise reader.error(f"{character!r} behind the end of an object")
        if _is_row(top):
            self._check_is_one(top)
            self.lists, self.beside, self.inner_row = {}, [], ""
        elif len(self.objects) == 1:
            self.objects = []

    def _check_is_one(self, top: set[str]) -> None:
        """A DataError where every key holds the values of all rows, as pandas writes a table."""
        if not top <= self.packed | self.lists.keys():
            return
        for key in (*TURNS, *CAPTIONS):
            if key in self.packed:
                what = f"{self.path} is written by columns: {key} holds that of every row"
                fix = "a list of rows: pandas.read_json(FILE).to_json(OTHER, orient='records')"
                raise DataError(what, at=self.path, fix=fix)

    def rows(self, split: str | None) -> tuple[Spans, list[str]]:
        """The rows of the document, see `find`."""
        if self.objects:
            splits.refuse(split, self.path, "the file is no object with a list for each split")
            return np.array(self.objects, np.int64), []
        if not self.lists:
            self._tell_what_else()
        names = {name.rpartition(".")[2]: name for name in self.lists}
        names = names if len(names) == len(self.lists) else {name: name for name in self.lists}
        if split is None and len(names) > 1:
            self._tell_several(list(names))
        if split is not None:
            splits.check(split, sorted(names), self.path)
        return self.lists[names[splits.canonical(split, list(names)) or next(iter(names))]], self.beside

    def _object(self, prefix: str, depth: int) -> set[str]:
        """Read an object; its keys."""
        keys: set[str] = set()
        for key in self.reader.each_key():
            if key in keys:
                raise self.reader.error(f"the key {key!r} is given twice")
            keys.add(key)
            name = f"{prefix}{key}"
            character = self.reader.peek()
            if character == "[":
                self._list(name)
            elif character == "{" and depth < DEEP:
                self._inner(name, depth)
                self.packed.update(() if depth else (name,))
            else:
                self.reader.value()
                self.beside.append(name)
        return keys

    def _inner(self, name: str, depth: int) -> None:
        """Read an object inside another; where it is a row, its lists are no lists of rows."""
        lists, beside, inner_row = self.lists, len(self.beside), self.inner_row
        self.lists = {}
        if _is_row(self._object(f"{name}.", depth + 1)):
            self.beside[beside:] = [name]
            self.inner_row = inner_row or name
        else:
            lists.update(self.lists)
        self.lists = lists

    def _list(self, name: str) -> None:
        spans = list(self._elements(name))
        if self.holds_turns:
            self.beside.append(name)
            self.inner_row = self.inner_row or name
            return
        if spans and not all(is_object for _, _, is_object in spans):
            self.beside.append(name)
            self.packed.add(name)
            return
        self.lists[name] = np.array([span[:2] for span in spans], np.int64).reshape(-1, 2)

    def _elements(self, name: str) -> Iterator[tuple[int, int, bool]]:
        """(first byte, the one behind the last, whether it is an object) of each element of a list."""
        reader = self.reader
        reader.take("[")
        self.holds_turns = False
        if reader.peek() == "]":
            reader.take("]")
            return
        number, ended = 0, False
        while not ended:
            is_object = reader.peek() == "{"
            yield *self._value(), is_object
            if not number:
                self.holds_turns = _is_turn(self.last)
            ended = reader.take(",]") == "]"
            number += 1
            whole.check_size(number, ROWS, f"{name} of {self.path}", more=True)

    def _value(self) -> tuple[int, int]:
        start = self.reader.place()
        self.last = self.reader.value()
        return start, self.reader.behind()

    def _tell_what_else(self) -> None:
        """A DataError for an object without any list of rows."""
        if self.inner_row:
            what = f"{self.path} has its rows under keys, such as {self.inner_row!r}, and not in a list"
            raise DataError(what, at=self.path, fix="a list of the rows, each with its key as `id`")
        keys = _few(self.beside) or "none"
        raise DataError(f"{self.path} is one object without a list of rows; its keys: {keys}", at=self.path, fix=FIX)

    def _tell_several(self, names: Sequence[str]) -> None:
        if {"images", "annotations"} <= set(names):
            what = f"{self.path} has COCO's layout: pictures in one list, what is in them in another"
            fix = f"mmalign data check coco-boxes path={self.path} images=FOLDER"
            raise DataError(what, at=self.path, fix=fix)
        if {"features", "rows"} <= set(names) and {"num_rows_total", "truncated"} & set(self.beside):
            what = f"{self.path} is a page that the hub shows of a data set, not the data set"
            raise DataError(what, at=self.path, fix="fetch its files: hf download NAME --repo-type dataset")
        what = f"{self.path} has several lists: {_few(names)}"
        longest = max(zip(names, self.lists.values(), strict=True), key=lambda pair: len(pair[1]))[0]
        raise DataError(what, at=self.path, fix=f"name one: split={longest}")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")
