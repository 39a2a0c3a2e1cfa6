"""The rows of a file of answers are the same, whatever holds them; what is damaged is told with its line."""

import csv
import gzip
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmalign.benchmarks.answers import answer_rows
from mmalign.errors import DataError

ROWS = [
    {"question_id": "1", "text": "é \u2028 a\nb"},
    {"question_id": "2", "text": ""},
    {"question_id": "3", "text": "=1+1\t,"},
]
TEXTS = {row["question_id"]: row["text"] for row in ROWS}


def table(delimiter: str) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["question_id", "text"], delimiter=delimiter)
    writer.writeheader(), writer.writerows(ROWS)
    return out.getvalue().encode()


def sheet(*pages: list[list[Any]]) -> bytes:
    openpyxl = pytest.importorskip("openpyxl")
    book, out = openpyxl.Workbook(), io.BytesIO()
    book.remove(book.active)
    for page in pages:
        one = book.create_sheet()
        for row in page:
            one.append(row)
    book.save(out)
    return out.getvalue()


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


FORMS: dict[str, Callable[[], bytes]] = {
    "lines": lambda: lines(*ROWS),
    "lines with CRLF": lambda: lines(*ROWS).replace(b"\n", b"\r\n"),
    "lines without an end": lambda: lines(*ROWS).rstrip(),
    "lines with blank ones": lambda: b"\n\n" + lines(*ROWS) + b"\n \r\n\n",
    "lines with a byte-order mark": lambda: b"\xef\xbb\xbf" + lines(*ROWS),
    "a list": lambda: json.dumps(ROWS).encode(),
    "an indented list": lambda: b"\n" + json.dumps(ROWS, indent=2).encode(),
    "a list with a byte-order mark": lambda: b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "indented objects": lambda: "\n".join(json.dumps(row, indent=4) for row in ROWS).encode(),
    "objects in one line": lambda: " ".join(json.dumps(row) for row in ROWS).encode(),
    "a mapping": lambda: json.dumps(TEXTS).encode(),
    "an indented mapping": lambda: json.dumps(TEXTS, indent=1).encode(),
    "a mapping of outputs": lambda: json.dumps({"acc": 1.0, "results": {"1": 0}, "outputs": TEXTS}).encode(),
    "right and wrong": lambda: json.dumps({"correct": ROWS[:1], "incorrect": ROWS[1:]}, indent=2).encode(),
    "TSV": lambda: table("\t"),
    "CSV": lambda: table(","),
    "TSV with a byte-order mark": lambda: b"\xef\xbb\xbf" + table("\t") + b"\r\n\r\n",
    "a sheet": lambda: sheet([list(ROWS[0]), *([row["question_id"], row["text"]] for row in ROWS), [None, None]], []),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_rows(form: str, packed: bool, tmp_path: Path) -> None:
    data = FORMS[form]()
    place = tmp_path / "answers"  # told by its content, not by its name
    place.write_bytes(gzip.compress(data) if packed else data)
    assert {row.id: row.text for row in answer_rows(str(place))} == TEXTS
    assert all(row.at.startswith(str(place)) for row in answer_rows(str(place)))


def test_one_row_is_a_row_and_no_mapping(tmp_path: Path) -> None:
    for row in (ROWS[0], {"image": "a.jpg", "answer": "b"}):
        (tmp_path / "a.json").write_text(json.dumps(row, indent=1))
        [answer] = answer_rows(str(tmp_path / "a.json"))
        assert answer.raw == row
        assert answer.at == f"{tmp_path / 'a.json'}:1"


GOOD = '{"id": 1, "text": "a"}\n'
NUMBERS = "index\tprediction\n1\tA\n"
BAD: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "there is no answer in the file", ""),
    "blank": (b" \n\r\n", "there is no answer in the file", ""),
    "an empty list": (b"[]", "there is no answer in the file", ""),
    "a header": (b"index\tprediction\n", "there is no answer in the file", ""),
    "line 5 torn": ((GOOD * 4 + '{"id": 5, "te\n' + GOOD).encode(), "not valid JSON", ":5"),
    "line 5 torn and gone on": ((GOOD * 4 + '{"id": 5, "te' + GOOD * 2).encode(), "not valid JSON", ":5"),
    "line 1 torn": (('{"id": 5, "te\n' + GOOD).encode(), "not valid JSON", ":1"),
    "the last line torn": ((GOOD * 2 + '{"id": 5').encode(), "not valid JSON", ":3"),
    "one torn line": (b'{"id": 5', "not valid JSON", ":1"),
    "zeros": ((GOOD + "\0" * 9 + "\n").encode(), "not valid JSON", ":2"),
    "a torn list": (b'[\n{"id": 1, "text": "a"},\n{"id": 2, "te', "not valid JSON", ":3"),
    "torn objects": (b'{\n"id": 1, "text": "a"\n}\n{\n"id": 2,\n', "not valid JSON", ":6"),
    "a number": ((GOOD + "7\n").encode(), "an object was expected, got '7'", ":2"),
    "a list in a list": (b'[{"id": 1, "text": "a"}, [1]]', "an object was expected, got [1]", " item 2"),
    "no UTF-8": (b'{"id": 1, "text": "\xff"}', "not UTF-8 text", ""),
    "prose": (b"the answer is yes", "not valid JSON", ":1"),
    "half a gzip": (gzip.compress(lines(*ROWS))[:-9], "cannot unpack", ""),
    "a pickle": (pickle.dumps(ROWS), "a pickle, which can run code, is not read", ""),
    "labels": (b'{"annotations": [{"question_id": 1}]}', "no answers, but an object of annotations ...", ""),
    "a short row": (b"index\tprediction\n1\n", "row 2 has 1 of 2 cells", " row 2"),
    "a long row": (b"index\tprediction\n1\tA\n2\ta\tb\n", "row 3 has 3 of 2 cells", " row 3"),
    "two columns": (b"index\tprediction\tprediction\n1\tA\tB\n", "two columns are called 'prediction'", ""),
    "nested": (b"[" * 100_000, "nested too deep", ""),
    "nested objects": (b'{"a":' * 100_000, "not valid JSON", ""),
    "no sheet": (b"PK\x03\x04 rest", "not a readable sheet", ""),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_damaged_is_told_with_its_place(name: str, tmp_path: Path) -> None:
    data, what, where = BAD[name]
    place = tmp_path / "answers.jsonl"
    place.write_bytes(data)
    with pytest.raises(DataError) as error:
        answer_rows(str(place))
    assert what in error.value.what
    assert error.value.at == f"{place}{where}"
    assert error.value.fix or name in ("no UTF-8", "a number", "a list in a list")
    assert place.read_bytes() == data


def test_indented_objects_have_the_line_they_begin_in(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("\n" + "\n\n".join(json.dumps(row, indent=1) for row in ROWS))
    rows = answer_rows(str(tmp_path / "a.json"))
    assert [row.at.rpartition(":")[2] for row in rows] == ["2", "7", "12"]


def test_a_table_counts_its_rows_with_the_header(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(NUMBERS)
    [row] = answer_rows(str(tmp_path / "a.tsv"))
    assert (row.at, row.id, row.text, row.key) == (f"{tmp_path / 'a.tsv'} row 2", "1", "A", "index")


def test_cells_are_read_as_they_look(tmp_path: Path) -> None:
    cells = [[1, 2], [2.0, 0.5], ["3", True], [4, None], [5, "=A1"], [6, "NA"]]
    (tmp_path / "a.xlsx").write_bytes(sheet([["index", "prediction"], *cells]))
    rows = answer_rows(str(tmp_path / "a.xlsx"))
    assert {row.id: row.text for row in rows} == {"1": "2", "2": "0.5", "3": "True", "4": "", "5": "=A1", "6": "NA"}


def test_sheets_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, page = tmp_path / "a.xlsx", [["index", "prediction"], [1, "A"]]
    place.write_bytes(sheet(page, page))
    with pytest.raises(DataError, match="2 sheets hold something"):
        answer_rows(str(place))
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("xl/worksheets/sheet1.xml", b" " * 3_000_000)
    monkeypatch.setenv("MMALIGN_UNPACKED_BYTES", "1M")
    with pytest.raises(DataError, match="it unpacks to more than 1 MiB and 100 times its own size"):
        answer_rows(str(place))
    place.write_bytes(gzip.compress(b"[" + b" " * 3_000_000))
    with pytest.raises(DataError, match="unpacks to more than 1 MiB and 100 times its own size"):
        answer_rows(str(place))
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    place.write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match="reading a sheet needs openpyxl") as error:
        answer_rows(str(place))
    assert error.value.fix == "pip install mmalign[sheets]"


@pytest.mark.parametrize("second", ["5", '"yes"', "[1]", "null"])
def test_what_stands_behind_an_object_is_one_too(tmp_path: Path, second: str) -> None:
    place = tmp_path / "answers.jsonl"
    place.write_text(f'{{\n"id": "1", "text": "yes"\n}}\n{second}\n')
    with pytest.raises(DataError, match="an object was expected") as told:
        answer_rows(str(place))
    assert told.value.at == f"{place}:4"
