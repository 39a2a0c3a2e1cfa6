"""The lists of a large JSON document, some elements at a time: no more than a piece of the file is ever held."""

import codecs
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mmalign.errors import DataError
from mmalign.io import whole
from mmalign.io.limits import ROW_BYTES, ROWS

BLOCK = 1 << 20  # bytes read at once, where no single element is longer
AT_ONCE = 1024  # elements given together
FIX = "fetch the file again"
_SPACE = " \t\r\n"
_ENDS = _SPACE + ",:]}"  # what stands behind a value


def elements(path: Path, keys: Collection[str]) -> Iterator[tuple[str, int, list[Any]]]:
    """(key, number of the first, elements in their order) of the lists that a JSON object has under these keys.

    A document that is a list itself has the key "". Other keys are read over. Raises DataError, with the file and about
    which byte, for what is no JSON, for a document that lacks one of the keys, has one twice or no list under it.
    """
    seen: set[str] = set()
    with _opened(path) as source:
        reader = JsonReader(source, str(path))
        if (first := reader.peek()) not in ("{", "["):
            raise reader.error("neither a JSON object nor a list" if first else "empty")
        for key in [""] if first == "[" else reader.each_key():
            if key in seen:
                raise reader.error(f"the key {key!r} is given twice")
            if key not in keys:
                reader.skip()
                continue
            seen.add(key)
            yield from ((key, number, batch) for number, batch in reader.batches(key))
        if reader.peek():
            raise reader.error("there is more behind the end of the document")
    if missing := [key for key in keys if key not in seen]:
        what = f"{path.name} has no list {missing[0]!r}" if missing[0] else f"{path.name} is no list"
        raise DataError(what, at=str(path), fix="another file; is it of this layout?")


def _opened(path: Path) -> IO[bytes]:
    try:
        return open(path, "rb")
    except FileNotFoundError as err:
        raise DataError(f"no file {path}", at=str(path), fix="check the path and $MMALIGN_DATA") from err
    except OSError as err:
        raise DataError(f"cannot read {path}: {err.strerror}", at=str(path)) from err


def _no_constant(word: str) -> Any:
    raise DataError(f"{word} is no JSON")


@dataclass
class JsonReader:
    """A position in a document, and the text around it."""

    source: IO[bytes]
    name: str
    text: str = ""
    at: int = 0
    read: int = 0  # bytes so far
    decoder: json.JSONDecoder = field(default_factory=lambda: json.JSONDecoder(parse_constant=_no_constant))
    utf8: codecs.IncrementalDecoder = field(default_factory=codecs.getincrementaldecoder("utf-8-sig"))

    def error(self, what: str) -> DataError:
        return DataError(f"{Path(self.name).name}: {what}, near byte {self.read:,}", at=self.name, fix=FIX)

    def peek(self) -> str:
        """The next character that is no blank; empty at the end."""
        while True:
            while self.at < len(self.text):
                if (character := self.text[self.at]) not in _SPACE:
                    return character
                self.at += 1
            if not self.more():
                return ""

    def take(self, expected: str) -> str:
        """The next character, one of those expected."""
        if not (character := self.peek()) or character not in expected:
            what = f"{character!r} where {' or '.join(expected)} should be" if character else "cut off"
            raise self.error(what)
        self.at += 1
        return character

    def each_key(self) -> Iterator[str]:
        """The keys of an object; whoever asks reads what stands under each."""
        self.take("{")
        if self.peek() == "}":
            self.at += 1
            return
        while True:
            if self.peek() != '"':
                self.take('"')
            key = self.value()
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return

    def skip(self) -> None:
        """Read over a value; a list element by element, for it may be long."""
        if self.peek() == "[":
            for _ in self.batches("list"):
                pass
        else:
            self.value()

    def batches(self, key: str) -> Iterator[tuple[int, list[Any]]]:
        """(number of the first, elements) of a list."""
        if (character := self.peek()) != "[":
            raise self.error(f"{key} must be a list, and begins with {character!r}")
        self.at += 1
        number, batch = 0, []
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            batch.append(self.value())
            ended = self.take(",]") == "]"
            if ended or len(batch) == AT_ONCE:
                yield number, batch
                number += len(batch)
                whole.check_size(number, ROWS, self.name, more=True)
                batch = []
            if ended:
                return

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except ValueError as err:  # damaged, or not all of it is here
                if not self.more():
                    raise self.error(f"not valid JSON: {getattr(err, 'msg', err)}") from None
            except RecursionError:
                raise self.error("nested too deep") from None
            except DataError as err:
                raise self.error(err.what) from None
            else:
                if (end < len(self.text) and self.text[end] in _ENDS) or not self.more():  # a number may go on
                    self.at = end
                    return value

    def more(self) -> bool:
        """Read on, as much again as is here; whether there was anything."""
        self.text, self.at = self.text[self.at :], 0
        whole.check_size(len(self.text), ROW_BYTES, f"an element of {self.name}", more=True)
        block = self.source.read(max(BLOCK, len(self.text)))
        self.read += len(block)
        try:
            self.text += self.utf8.decode(block, final=not block)
        except UnicodeDecodeError as err:
            raise self.error(f"not UTF-8 text: {err.reason}") from err
        return bool(block)
