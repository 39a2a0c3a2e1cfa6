"""`mmalign score`: stored answers, every benchmark, and what somebody new gets wrong."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmalign.benchmarks.filed import score
from mmalign.benchmarks.pope import POPE
from mmalign.plan.cards import Registry
from tests.benchmarks.test_cards import NAMES, files
from tests.conftest import Said
from tests.test_layers import loads

Run = Callable[..., Said]
RIGHT = {"gqa": "urn", "pope": "Yes", "scienceqa": "A", "mmbench": "A", "mmbench_cn": "A", "mmlu": "A"}
IDS = {"vizwiz": "a.jpg", "mmvet": "v1_0", "mmlu": "anatomy/0", "pope": "10000001"}


def answers(folder: Path, rows: dict[str, str], name: str = "answers.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    place = folder / name
    place.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in rows.items()))
    return place


@pytest.fixture
def score_words(tmp_path: Path) -> Callable[[str], list[str | Path]]:
    """The words that score the smallest files of a benchmark, with a right answer."""

    def words(name: str) -> list[str | Path]:
        (tmp_path / name).mkdir()
        place = answers(tmp_path, {IDS.get(name, "1"): RIGHT.get(name, "red")})
        return ["score", "--bench", name, "--data", files(tmp_path / name, name), "--answers", place]

    return words


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_is_scored_by_its_card(name: str, score_words: Any, mmalign: Run) -> None:
    result = mmalign(*score_words(name), "--json")
    assert result.code == 0, result.err
    scores, facts = json.loads(result.out), Registry().card("benchmarks", name).facts
    assert scores["headline"] == facts["headline"]
    assert scores["counts"]["asked"] == scores["counts"]["answered"] == 1
    assert any(f"1 questions, the published set has {facts['questions']}" in note for note in scores["notes"])
    if name == "mmvet":
        assert scores["metrics"] == {}
        assert scores["interval"] is None
        assert any(note.startswith("not graded: MM-Vet needs a judge") for note in scores["notes"])
    else:
        best = {"percent": 100, "fraction": 1}[scores["unit"]]
        assert scores["metrics"][scores["headline"]] == best or name == "vqav2"  # its four people are one
        assert scores["items"]
        assert scores["interval"]["low"] == scores["interval"]["high"] == scores["interval"]["mean"]
        assert scores["interval"]["mean"] == scores["metrics"][scores["headline"]]
        assert scores["interval"]["cluster"] == ("question" if name == "mmlu" else "picture")


def test_the_table_says_what_was_read_and_how(score_words: Any, mmalign: Run) -> None:
    result = mmalign(*score_words("pope"))
    assert result.out.splitlines()[0] == "pope: official layout: coco_pope_random.json; protocol official, gaps strict"
    assert result.out.splitlines()[2].split() == ["f1", "1.0000"]  # the headline first
    assert "f1 1.0000, 95 % interval 1.0000 to 1.0000, by picture (1)" in result.out
    assert "1 asked, 1 answered, 0 missing" in result.out
    assert "note: without adversarial, popular, whose files are not there: no mean of three" in result.err
    assert "not graded" in mmalign(*score_words("mmvet")).err


def test_nothing_heavy_is_loaded(score_words: Any) -> None:
    for name in ("pope", "mmbench"):
        assert loads(*map(str, score_words(name))) == {"code": 0, "heavy": []}


def test_protocols_and_gaps_are_passed_on(score_words: Any, mmalign: Run, tmp_path: Path) -> None:
    words = score_words("pope")
    scores = json.loads(mmalign(*words, "--protocol", "lmms-eval", "--json").out)
    assert (scores["headline"], scores["protocol"]) == ("all/f1", "lmms-eval")
    rows = answers(tmp_path, {"10000001": "Yes", "7": "no"})
    result = mmalign(*words[:-1], rows)
    assert (result.code, "1 answers belong to no question: 7" in result.err) == (2, True)
    assert json.loads(mmalign(*words[:-1], rows, "--gaps", "lenient", "--json").out)["counts"]["unknown"] == 1


def test_settings_of_the_benchmark(score_words: Any, mmalign: Run) -> None:
    words = score_words("mmbench")
    scores = json.loads(mmalign(*words, "extraction=before-2025-08", "--json").out)
    assert any("rule 'before-2025-08'" in note for note in scores["notes"])
    assert mmalign(*words, "all_rounds=false").code == 0


def test_one_folder_of_all_benchmarks(score_words: Any, mmalign: Run, tmp_path: Path) -> None:
    """As LLaVA has it: playground/data/eval/pope, .../mmbench, ..."""
    score_words("mmbench"), score_words("mmbench_cn")
    words = score_words("pope")
    scores = json.loads(mmalign(*words[:4], tmp_path, *words[5:], "--json").out)
    assert scores["data"] == "official layout: coco_pope_random.json"
    assert POPE(str(tmp_path)).location.folder == str(tmp_path / "pope")
    assert POPE(str(tmp_path / "pope")).location.folder == str(tmp_path / "pope")


def test_a_split_without_answers_becomes_a_submission(mmalign: Run, tmp_path: Path) -> None:
    (tmp_path / "llava_test.jsonl").write_text('{"question_id": 0, "image": "t.jpg", "text": "?"}\n')
    words = ["score", "--bench", "vizwiz", "--data", tmp_path, "--answers", answers(tmp_path, {"t.jpg": "Two."})]
    assert_refused(mmalign(*words), "VizWiz: these files hold no answers", "mmalign score --submission FILE")
    result = mmalign(*words, "--submission", tmp_path / "up.json")
    assert (result.code, result.out, result.err.strip()) == (0, "", f"written: {tmp_path / 'up.json'}")
    assert json.loads((tmp_path / "up.json").read_text()) == [{"image": "t.jpg", "answer": "2"}]


def test_a_submission_beside_a_score(score_words: Any, mmalign: Run, tmp_path: Path) -> None:
    result = mmalign(*score_words("gqa"), "--submission", tmp_path / "up.json", "--json")
    assert json.loads(result.out)["metrics"]["accuracy"] == 100
    assert json.loads((tmp_path / "up.json").read_text()) == [{"questionId": "1", "prediction": "urn"}]
    result = mmalign(*score_words("pope"), "--submission", tmp_path / "up.json")
    assert_refused(result, "POPE has no server to submit to", "score the answers: mmalign score")


def test_benchmarks_without_files(mmalign: Run, tmp_path: Path) -> None:
    from mmalign.toyworld.benchmarks import Pope

    bench = Pope(images=2)
    place = answers(tmp_path, {item.question.id: item.answer for item in bench.items})
    scores = json.loads(mmalign("score", "--bench", "toy-pope", "images=2", "--answers", place, "--json").out)
    assert scores["metrics"]["accuracy"] == 100
    some = {bench.items[0].question.id: "yes"}
    result = mmalign("score", "--bench", "toy-pope", "images=2", "--answers", answers(tmp_path, some))
    assert_refused(result, f"{len(bench.items) - 1} of {len(bench.items)} questions have no answer", "score leniently")
    lenient = score(bench, some, gaps="lenient")
    assert (lenient.counts["missing"], lenient.counts["answered"]) == (len(bench.items) - 1, 1)
    result = mmalign("score", "--bench", "toy-pope", "--answers", place, "--protocol", "lmms-eval")
    assert_refused(result, "Pope has no protocol 'lmms-eval'", "one of official")


def assert_refused(result: Said, what: str, fix: str) -> None:
    """Exit code 2 and three lines, the first and the last as told."""
    assert (result.code, result.out) == (2, "")
    lines = result.err.splitlines()
    assert lines[0].startswith("error: ")
    assert what in lines[0]
    assert lines[-1].startswith("  try  ")
    assert fix in lines[-1]
    assert len(lines) <= 3


def test_what_is_not_named(score_words: Any, mmalign: Run) -> None:
    words = score_words("pope")
    assert_refused(mmalign("score"), "no benchmark is named", "--bench pope")
    assert_refused(mmalign(*words[:-2]), "no answers are named", "--answers FILE")
    assert_refused(mmalign("score", "--bench", "popes", *words[3:]), "no benchmarks card named 'popes'", "'pope'?")
    assert_refused(mmalign(*words, "split"), "'split' is not key=value", "split=test")
    assert_refused(mmalign(*words, "split=test"), "takes no argument 'split'", "one of data, ")
    assert_refused(mmalign(*words, "--protocol", "lmms"), "POPE has no protocol 'lmms'", "'lmms-eval'?")
    assert_refused(mmalign(*words, "--gaps", "strickt"), "no such way to treat gaps: 'strickt'", "'strict'?")
    result = mmalign("score", "--bench", "toy-alignment", "--answers", words[-1])
    assert_refused(result, "toy-alignment measures the model itself", "mmalign eval --bench toy-alignment")


def test_the_wrong_folder(score_words: Any, mmalign: Run, tmp_path: Path) -> None:
    words = score_words("gqa")
    (tmp_path / "empty").mkdir()
    result = mmalign(*words[:4], tmp_path / "empty", *words[5:])
    assert_refused(result, "no files of GQA in", "testdev_balanced_questions.json (official)")
    assert "  at   " in result.err
    result = mmalign(*words[:4], tmp_path / "nowhere", *words[5:])
    assert_refused(result, "no such file or folder", "name the folder with the benchmark's files")
    result = mmalign(*words[:-1], tmp_path / "nowhere.jsonl")
    assert (result.code, "cannot read" in result.err, "nowhere.jsonl" in result.err) == (2, True, True)


def test_data_that_is_left_out_is_the_cards(score_words: Any, mmalign: Run, here: Path, monkeypatch: Any) -> None:
    words = score_words("pope")
    assert_refused(mmalign(*words[:3], *words[5:]), "no such file or folder: data:eval/pope", "name the folder")
    (here / "all").mkdir()
    os.rename(here / "pope", here / "all" / "pope")
    (here / "all").rename(here / "eval")
    monkeypatch.setenv("MMALIGN_DATA", str(here))
    assert mmalign(*words[:3], *words[5:]).code == 0


def test_answers_of_another_benchmark(score_words: Any, mmalign: Run, tmp_path: Path) -> None:
    words, other = score_words("pope"), answers(tmp_path, {"201": "no", "202": "yes"}, "other.jsonl")
    for gaps in ("strict", "lenient", "official"):
        result = mmalign(*words[:-1], other, "--gaps", gaps)
        assert_refused(
            result, "none of the 2 answers is to a question asked here: 201, 202", "questions here: 10000001"
        )


@pytest.mark.parametrize(
    ("name", "file", "keep", "what"),
    [
        ("gqa", "testdev_balanced_questions.json", 60, "not valid JSON"),
        ("pope", "coco_pope_random.json", 30, "not valid JSON"),
        ("mmbench", "mmbench_dev_20230712.tsv", -10, "the last row has 6 of 8 cells"),
        ("mmlu", "test/anatomy_test.csv", 8, "row 1 has 3 of 6 cells"),
    ],
)
def test_half_a_file(
    name: str, file: str, keep: int, what: str, score_words: Any, mmalign: Run, tmp_path: Path
) -> None:
    words, place = score_words(name), tmp_path / name / file
    place.write_bytes(place.read_bytes()[:keep])
    result = mmalign(*words)
    assert (result.code, what in result.err) == (2, True), result.err
    assert file.rpartition("/")[2] in result.err
    assert "Traceback" not in result.err


def test_some_of_the_parts_of_a_parquet_file(score_words: Any, mmalign: Run, tmp_path: Path) -> None:
    words = score_words("pope")
    (tmp_path / "parts").mkdir()
    for number in (0, 2):
        (tmp_path / "parts" / f"test-0000{number}-of-00003.parquet").write_bytes(b"PAR1")
    result = mmalign(*words[:4], tmp_path / "parts", *words[5:])
    assert_refused(result, "2 of 3 parts are there of test-00000-of-00003.parquet", "fetch the others")


def test_labels_that_were_not_fetched(score_words: Any, mmalign: Run, tmp_path: Path) -> None:
    words = score_words("pope")
    row = {"question_id": 1, "image": "a.jpg", "text": "?", "category": "adversarial"}
    (tmp_path / "pope" / "llava_pope_test.jsonl").write_text(json.dumps(row))
    assert_refused(mmalign(*words), "no labels of adversarial", "fetch coco_pope_adversarial.json")


def test_missing_pictures_are_counted_before_a_model_is_asked(score_words: Any, tmp_path: Path) -> None:
    from mmalign.errors import DataError

    score_words("pope")
    bench = POPE(str(tmp_path / "pope"))
    with pytest.raises(DataError, match="1 of 1 pictures are missing: a.jpg") as error:
        bench.ready()
    assert "images=FOLDER" in error.value.fix
    (tmp_path / "pope" / "val2014").mkdir()
    (tmp_path / "pope" / "val2014" / "a.jpg").write_bytes(b"any")
    bench.ready()
