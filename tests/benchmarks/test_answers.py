"""Answers are joined by id, and every gap is counted or refused."""

from pathlib import Path

import pytest

from mmalign.benchmarks import Benchmark
from mmalign.benchmarks.answers import Answers, GapRule, answer_rows, few, join
from mmalign.errors import DataError

QIDS = ["1", "2", "3"]


def test_the_last_row_of_an_id_counts_and_the_others_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(
        '{"id": 1, "text": "a"}\n{"question_id": 2, "text": "b", "prompt": "?"}\n{"id": "1", "text": "c"}\n'
    )
    answers = Benchmark().read(str(file))
    assert answers == {"1": "c", "2": "b"}
    joined = join(["2", "1"], answers, "lenient", GapRule())
    assert list(joined.texts.items()) == [("2", "b"), ("1", "c")]
    assert joined.counts == {"asked": 2, "answered": 2, "missing": 0, "duplicate": 1, "unknown": 0}
    assert joined.rows == [("1", "a"), ("2", "b"), ("1", "c")]
    assert not joined.notes


def test_strict_refuses_gaps_and_names_a_few() -> None:
    with pytest.raises(DataError, match="2 of 3 questions have no answer: 2, 3"):
        join(QIDS, {"1": "a"}, "strict", GapRule())
    with pytest.raises(DataError, match="1 answers belong to no question: 9"):
        join(QIDS, dict.fromkeys("1239", "a"), "strict", GapRule())
    assert few([str(n) for n in range(8)]) == "0, 1, 2, 3, 4 and 3 more"


def test_lenient_takes_a_missing_answer_for_an_empty_one_and_says_so() -> None:
    joined = join(QIDS, {"1": "a", "9": "b"}, "lenient", GapRule())
    assert joined.texts == {"1": "a", "2": "", "3": ""}
    assert joined.notes == [
        "2 of 3 questions have no answer; counted as empty answers",
        "1 answers belong to no question; left out",
    ]
    assert (joined.counts["missing"], joined.counts["unknown"]) == (2, 1)


def test_official_does_as_the_tool_does() -> None:
    joined = join(QIDS, {"1": "a"}, "official", GapRule(missing="skip"))
    assert joined.texts == {"1": "a"}
    assert joined.notes == ["2 of 3 questions have no answer; left out of the mean"]
    with pytest.raises(DataError, match="have no answer"):
        join(QIDS, {"1": "a"}, "official", GapRule(unknown="skip"))


def test_nothing_to_score() -> None:
    with pytest.raises(DataError, match="there are no answers to score"):
        join(QIDS, {}, "official", GapRule("skip", "skip"))


def test_gaps_are_treated_in_three_ways() -> None:
    with pytest.raises(DataError, match="no such way to treat gaps: 'lax'"):
        join(QIDS, {}, "lax", GapRule())  # type: ignore[arg-type]


BAD = {
    '{"text": "a"}': "answer 1 has neither `id` nor `question_id`",
    '{"id": 1}': "answer 1 has no `text`",
    '{"id": 1, "text": null}': "answer 1 has a `text` that is no text: None",
}


@pytest.mark.parametrize("line", BAD)
def test_lines_that_are_no_answers(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(DataError, match=BAD[line]):
        answer_rows(str(tmp_path / "a.jsonl"))


def test_a_plain_mapping_is_an_answer_to_each_id() -> None:
    assert Answers.of({"1": "a"}).rows == [("1", "a")]


def test_a_benchmark_without_a_server(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Benchmark has no server to submit to"):
        Benchmark().submission({}, tmp_path / "x")
