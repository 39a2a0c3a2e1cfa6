"""The answers an evaluation has already, read by the one reader before a model is loaded; nothing of them is lost."""

import codecs
import json
from pathlib import Path

from mmalign.benchmarks import Benchmark, Cut
from mmalign.benchmarks.answers import Answers, few, one_each
from mmalign.errors import DataError
from mmalign.io import document, files

FIX = "mend the line, or delete it: its question is then asked again; all other answers are kept"


def stored(bench: Benchmark, place: Path) -> dict[str, str]:
    """{question id: answer, or Cut} of the file an evaluation writes; none where it is not there or empty.

    Of a last line without an end, what a kill left of it is dropped. DataError, and the file stays as it is, for any
    other line that is no answer, for answers that differ, for one to no question here.
    """
    data = place.read_bytes() if place.exists() else b""
    lines = data.removeprefix(codecs.BOM_UTF8).strip()
    if not lines:
        return {}
    if not lines.startswith(b"{"):
        what = "an evaluation goes on from JSON lines, and these are none"
        raise DataError(what, at=f"{place}:1", fix="score it as it is (mmalign score), or take it out of the folder")
    kept = _with_end(data)
    if kept != data:
        files.write(place, kept)
    return _read(bench, place, kept) if kept.strip() else {}


def _with_end(data: bytes) -> bytes:
    """The file with an end to its last line, or without that line where it was cut."""
    whole, newline, last = data.rpartition(b"\n")
    if not last.strip():
        return data
    try:
        document.parse(last.removeprefix(codecs.BOM_UTF8), "", DataError)
    except DataError:
        return whole + newline
    return data + b"\n"


def _read(bench: Benchmark, place: Path, data: bytes) -> dict[str, str]:
    try:
        answers = Answers.of(bench.read(str(place)))
        one_each(answers)
    except DataError as err:
        raise DataError(err.what, at=err.at or str(place), fix=FIX) from err
    known = {question.id for question in bench.questions()}
    if foreign := [qid for qid in answers if qid not in known]:
        raise DataError(f"{len(foreign)} stored answers belong to no question: {few(foreign)}", at=str(place), fix=FIX)
    lines = [line for line in data.removeprefix(codecs.BOM_UTF8).split(b"\n") if line.strip()]
    if len(answers.rows) != len(lines):
        what = f"{len(answers.rows)} answers in {len(lines)} lines; an evaluation goes on from one in each"
        raise DataError(what, at=str(place), fix="score it as it is (mmalign score), or take it out of the folder")
    cut = {qid for (qid, _), line in zip(answers.rows, lines, strict=True) if json.loads(line).get("cut") is True}
    return {qid: Cut(text) if qid in cut else text for qid, text in answers.items()}
