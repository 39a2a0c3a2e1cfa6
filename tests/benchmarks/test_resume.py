"""An evaluation goes on from its answers by the reader that `score` has; of a damaged file nothing is lost."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from mmalign.benchmarks import Benchmark, Question, Score
from mmalign.benchmarks.mmvet import MMVet
from mmalign.benchmarks.resume import FIX, stored
from mmalign.errors import DataError
from tests.benchmarks.test_forms import RIGHT, mmvet


class Quiz(Benchmark):
    def questions(self) -> Sequence[Question]:
        return [Question(str(n), "?") for n in range(9)]

    def score(self, answers: Mapping[str, str]) -> Score:
        return Score({"n": len(answers)}, "n")


def line(n: int, text: str = "é") -> bytes:
    return json.dumps({"id": str(n), "text": text}, ensure_ascii=False).encode() + b"\n"


FOUR = b"".join(map(line, range(4)))
READ = {str(n): "é" for n in range(4)}


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        (b"", b""),
        (b"\n \n", b"\n \n"),
        (FOUR, FOUR),
        (FOUR + b'{"id": "4", "te', FOUR),  # what a kill leaves
        (FOUR + '{"id": "4", "text": "é'.encode()[:-1], FOUR),  # amid a letter
        (FOUR + b"\0\0\0", FOUR),  # a machine that stopped
        (FOUR.rstrip(), FOUR),  # all of a line but its end, as an editor leaves it
        (b'{"id": "0", "te', b""),
        (b"\xef\xbb\xbf" + FOUR.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + FOUR.replace(b"\n", b"\r\n")),
        (b'{"question_id": 0, "answer": "\xc3\xa9", "x": 1}\n\n' + FOUR[len(line(0)) :], None),  # other keys: case a19
    ],
)
def test_what_a_killed_run_has_is_kept(data: bytes, kept: bytes | None, tmp_path: Path) -> None:
    place = tmp_path / "quiz.jsonl"
    place.write_bytes(data)
    kept = data if kept is None else kept
    assert stored(Quiz(), place) == (READ if kept.strip() else {})
    assert place.read_bytes() == kept
    with place.open("ab") as out:  # as the evaluation does
        out.write(line(4))
    assert stored(Quiz(), place) == (READ if kept.strip() else {}) | {"4": "é"}


def test_there_is_no_file_yet(tmp_path: Path) -> None:
    assert stored(Quiz(), tmp_path / "quiz.jsonl") == {}


BAD = {
    "torn": (FOUR + b'{"id": "4", "te\n' + line(5), "not valid JSON", ":5", FIX),
    "torn and gone on": (FOUR + b'{"id": "4", "te' + line(5) + line(6), "not valid JSON", ":5", FIX),
    "no text": (FOUR + b'{"id": "4"}\n', "answer 5 has no `text`", ":5", FIX),
    "two ids": (FOUR + b'{"id": "4", "question_id": "5", "text": ""}\n', "several ids that differ", ":5", FIX),
    "differing": (FOUR + line(2, "a"), "1 questions have several answers that differ: 2 ('é', 'a')", "", FIX),
    "foreign": (FOUR + line(12), "1 stored answers belong to no question: 12", "", FIX),
    "a list": (b'[{"id": "4", "text": ""}]', "goes on from JSON lines, and these are none", ":1", "score it as it is"),
    "packed": (b"\x1f\x8b\x08\n\x00", "goes on from JSON lines, and these are none", ":1", "score it as it is"),
    "a mapping": (b'{"0": "a",\n"1": "b"}\n', "not valid JSON", ":1", FIX),
    "indented": (b'{\n"0": "a",\n"1": "b"\n}\n', "2 answers in 4 lines", "", "score it as it is"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_file_is_told_and_stays(name: str, tmp_path: Path) -> None:
    data, what, where, fix = BAD[name]
    place = tmp_path / "quiz.jsonl"
    place.write_bytes(data)
    with pytest.raises(DataError) as error:
        stored(Quiz(), place)
    assert what in error.value.what
    assert error.value.at == f"{place}{where}"
    assert error.value.fix.startswith(fix)
    assert place.read_bytes() == data


def test_a_benchmark_reads_its_own_ids(tmp_path: Path) -> None:
    mmvet(tmp_path)
    place = tmp_path / "mmvet.jsonl"
    place.write_text('{"question_id": 3, "text": "it is 3"}\n{"id": "v1_4", "text": "it is 4"}\n')
    answers = stored(MMVet(str(tmp_path)), place)
    assert answers == {qid: RIGHT[mmvet][qid] for qid in ("v1_3", "v1_4")}
