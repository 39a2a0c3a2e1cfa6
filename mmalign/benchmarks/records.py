"""The rows of a file of answers, whatever holds them: JSON lines, list or mapping, a table, a sheet; gzipped or not."""

import io
import json
import re
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from mmalign.benchmarks import reading
from mmalign.benchmarks.reading import Row
from mmalign.errors import DataError
from mmalign.io import document, whole
from mmalign.io.limits import UNPACKED_BYTES, UNPACKED_TIMES

IDS = ("id", "question_id", "questionId", "index")  # what a question is named by: ours, LLaVA's, GQA's, VLMEvalKit's
TEXTS = ("text", "answer", "prediction", "pred")  # an answer is called: by LLaVA and us, VQA, GQA, ScienceQA's scorer
ABSENT = "FAILED"  # what LLaVA's scorer of ScienceQA writes for an answer that is not there
CUT = "it may be cut off: mend it or fetch it again"
_SPACE = re.compile(r"\s*")
GZIP, ZIP, PICKLE = b"\x1f\x8b", b"PK\x03\x04", b"\x80"  # what such files begin with


class Record(NamedTuple):
    """A row and where it stands."""

    at: str  # file:line, or what else finds it
    row: Row


def records(path: str) -> list[Record]:
    """Every row of a file, told by its content: each an object with text keys.

    DataError, at the line where there is one, for what is cut off, empty, or of another kind.
    """
    with reading.readable(path):
        data = whole.read(path)
    if data.startswith(GZIP):
        data = whole.unpacked(data, path)
    if data.startswith(ZIP):
        return _of_table(_sheet(data, path), path)
    if data.startswith(PICKLE):
        raise DataError("a pickle, which can run code, is not read", at=path, fix="save it as .xlsx, .tsv or .json")
    text = reading.decoded(data, path)
    rows = {"": _empty, "[": _of_list, "{": _of_objects}.get(text.lstrip()[:1], _of_text)(text, path)
    return rows or _empty(text, path)


def _empty(_: str, path: str) -> list[Record]:
    raise DataError("there is no answer in the file", at=path, fix="is it the right one, and was the run finished?")


def _of_list(text: str, path: str) -> list[Record]:
    """One JSON list."""
    try:
        items = document.parse(text, path, DataError, CUT, depth=None)
    except DataError as err:
        raise DataError(err.what, at=_line_of(err.__cause__, path), fix=CUT) from err
    return _objects(items, path, "item")


def _objects(items: Iterable[Any], path: str, what: str) -> list[Record]:
    rows = [Record(f"{path} {what} {number}", item) for number, item in enumerate(items, 1)]
    for at, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"an object was expected, got {document.shown(row)}", at=at)
    return rows


def _line_of(err: BaseException | None, path: str) -> str:
    return f"{path}:{err.lineno}" if isinstance(err, json.JSONDecodeError) else path


def _of_objects(text: str, path: str) -> list[Record]:
    """JSON lines where the first line is an object and not the last; else objects of any number of lines."""
    lines = list(reading.numbered(text))
    if len(lines) > 1 and lines[0][1].strip() != "{":
        return [Record(at, reading.line_object(line, at)) for number, line in lines for at in [f"{path}:{number}"]]
    rows = _spread(text, path)
    return rows if len(rows) > 1 else _of_one(rows[0], text, path)


def _spread(text: str, path: str) -> list[Record]:
    """Objects one behind the other, each as it is indented."""
    decoder, rows = json.JSONDecoder(), list[Record]()
    start = _SPACE.match(text).end()  # type: ignore[union-attr]  # it matches nothing, too
    line = 1 + text.count("\n", 0, start)
    while start < len(text):
        try:
            _, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as err:
            raise DataError(f"not valid JSON: {err}", at=_line_of(err, path), fix=CUT) from err
        value = document.parse(text[start:end], f"{path}:{line}", DataError, CUT, depth=None)
        if not isinstance(value, dict):
            raise DataError(f"an object was expected, got {document.shown(value)}", at=f"{path}:{line}", fix=CUT)
        rows.append(Record(f"{path}:{line}", value))
        behind = _SPACE.match(text, end).end()  # type: ignore[union-attr]
        start, line = behind, line + text.count("\n", start, behind)
    return rows


def _of_one(record: Record, text: str, path: str) -> list[Record]:
    """A single object: a row, a mapping of ids to texts (MM-Vet's), or what LLaVA's scorer of ScienceQA leaves."""
    row = record.row
    if any(key in row for key in (*IDS, *TEXTS, "doc_id", "image")):
        return [record]
    if isinstance(row.get("outputs"), dict):  # ..._result.json: with acc, correct, count, results
        return _of_pairs((pair for pair in dict(_pairs(text))["outputs"] if pair[1] != ABSENT), path)
    if isinstance(right := row.get("correct"), list) and isinstance(wrong := row.get("incorrect"), list):
        rows = _objects([*right, *wrong], path, "item")  # ..._output.jsonl, which is one object
        return [record for record in rows if record.row.get("pred") != ABSENT]
    if any(isinstance(value, str) for value in row.values()):
        return _of_pairs(_pairs(text), path)
    what = f"no answers, but an object of {', '.join(list(row)[:5])} ..."
    raise DataError(what, at=path, fix="name the file of answers, not that of questions, labels or scores")


def _pairs(text: str) -> Any:
    """Objects as lists of (key, value), so that a key that is there twice is seen."""
    return json.loads(text, object_pairs_hook=list)


def _of_pairs(pairs: Iterable[tuple[str, Any]], path: str) -> list[Record]:
    return [Record(f"{path} {key}", {"id": key, "text": value}) for key, value in pairs]


def _of_text(text: str, path: str) -> list[Record]:
    """A table, told by its header; else JSON lines, whose first is none."""
    (number, header), *_ = reading.numbered(text)
    delimiter = next((mark for mark in "\t," if mark in header), "")
    names = [name.strip().strip('"') for name in header.split(delimiter)] if delimiter else []
    if not set(names) & {*IDS, "image"}:
        reading.line_object(header, f"{path}:{number}")
    return _of_table(reading.cells(text.encode(), path, delimiter), path)


def _of_table(rows: Sequence[Sequence[Any]], path: str) -> list[Record]:
    """The rows of a table under its header, which counts as row 1."""
    filled = [(number, row) for number, row in enumerate(rows, 1) if any(cell not in (None, "") for cell in row)]
    if not filled:
        return _empty("", path)
    (_, header), *body = filled
    names = [str(name) for name in header if name is not None]
    if twice := [name for name in dict.fromkeys(names) if name and names.count(name) > 1]:
        raise DataError(f"two columns are called {twice[0]!r}", at=path, fix="take one of them out")
    for number, row in body:
        if len(row) != len(header):
            what = f"row {number} has {len(row)} of {len(header)} cells"
            raise DataError(what, at=f"{path} row {number}", fix="the file may be cut off, or not quoted")
    return [
        Record(f"{path} row {number}", {str(name): _text(cell) for name, cell in zip(header, row, strict=True) if name})
        for number, row in body
    ]


def _text(cell: Any) -> Any:
    """A cell as it looks: nothing as the empty text, a number as its digits."""
    if cell is None:
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell) if isinstance(cell, (bool, int, float)) else cell


def _sheet(data: bytes, path: str) -> list[tuple[Any, ...]]:
    """The rows of the one sheet of a spreadsheet that holds something; formulas as they are written."""
    try:
        from openpyxl import load_workbook
    except ImportError as err:
        raise DataError("reading a sheet needs openpyxl", at=path, fix="pip install mmalign[sheets]") from err
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as parts:
            size = sum(part.file_size for part in parts.infolist())
        if size > max(UNPACKED_BYTES.value, UNPACKED_TIMES * len(data)):
            what = f"it unpacks to more than {UNPACKED_BYTES.said} and {UNPACKED_TIMES} times its own size"
            raise DataError(what, at=path, fix=UNPACKED_BYTES.fix)
        pages = [list(page.iter_rows(values_only=True)) for page in load_workbook(io.BytesIO(data), read_only=True)]
    except DataError:
        raise
    except Exception as err:  # zipfile, an XML parser and openpyxl have a dozen kinds of exceptions
        reason = (str(err).strip() or type(err).__name__).splitlines()[0]
        raise DataError(f"not a readable sheet: {reason}", at=path, fix=CUT) from err
    pages = [page for page in pages if any(cell is not None for row in page for cell in row)]
    if len(pages) > 1:
        raise DataError(f"{len(pages)} sheets hold something", at=path, fix="keep the one with the predictions")
    return pages[0] if pages else []
