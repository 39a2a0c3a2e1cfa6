"""MM-Vet: grades are aggregated, or asked of a judge that is named; never made up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmalign.benchmarks.judge import BusyError, Judge, ask_for_grade, parse_score, prompt_in
from mmalign.benchmarks.layouts import DataLocation
from mmalign.benchmarks.mmvet import MMVet, nearest_tenth
from mmalign.errors import DataError
from mmalign.plan.cards import Registry

Stub = Callable[[Callable[[dict[str, Any]], Any]], Any]


@pytest.fixture
def data(tmp_path: Path) -> str:
    rows = {
        "v1_0": {"imagename": "v1_0.png", "question": "x?", "answer": "-2<AND>3", "capability": ["ocr", "math"]},
        "v1_1": {"imagename": "v1_1.jpg", "question": "y?", "answer": "a|b", "capability": ["ocr"]},
    }
    (tmp_path / "mm-vet.json").write_text(json.dumps(rows))
    return str(tmp_path)


def sheet(folder: str, **scores: list[float]) -> str:
    grades = {
        name: {"model": ["gpt-x"] * len(one), "content": [str(value) for value in one], "score": one}
        for name, one in scores.items()
    }
    path = Path(folder) / "grades.json"
    path.write_text(json.dumps(grades))
    return str(path)


ANSWERS = {"v1_0": "3", "v1_1": "b"}


@pytest.mark.parametrize("name", ["mm-vet", "mmvet"])
def test_its_folder_is_found_beside_others(name: str, data: str, tmp_path: Path) -> None:
    """LLaVA's playground/data/eval calls it mm-vet; others by our name."""
    place = tmp_path / "eval" / name
    place.mkdir(parents=True)
    (Path(data) / "mm-vet.json").rename(place / "mm-vet.json")
    (tmp_path / "eval" / "pope").mkdir()
    bench = MMVet(str(tmp_path / "eval"))
    assert (bench.location.root, len(bench.questions())) == (str(place), 2)


def test_its_card_names_the_folder_that_llava_and_its_authors_do() -> None:
    assert Registry().card("benchmarks", "mmvet").args == {"data": "data:eval/mm-vet"}


def test_without_grades_and_judge_it_says_so(data: str) -> None:
    result = MMVet(data).score(ANSWERS)
    assert (result.metrics, result.items) == ({}, {})
    assert result.notes == ["not graded: MM-Vet needs a judge; name a grades file, or a judge's endpoint"]


def test_grades_are_averaged_over_what_is_asked(data: str) -> None:
    result = MMVet(data, grades=sheet(data, v1_0=[1.0, 0.5], v1_1=[0.2, 0.2])).score(ANSWERS)
    assert result.metrics == pytest.approx(
        {
            "math": 75,
            "ocr": 47.5,
            "set/math_ocr": 75,
            "set/ocr": 20,
            "total": 47.5,
            "std": 12.5,
            "run/1": 60,
            "run/2": 35,
        }
    )
    assert result.notes == [
        "nothing tells that grades.json grades these answers, not another run's",
        "judge: gpt-x",
    ]
    assert result.items == pytest.approx({"v1_0": 75, "v1_1": 20})
    once = MMVet(data, grades=str(Path(data) / "grades.json"), runs=1).score(ANSWERS)
    assert once.metrics["total"] == 60


def test_a_grade_that_is_nan_poisons_the_mean_as_it_does_officially(data: str) -> None:
    result = MMVet(data, grades=sheet(data, v1_0=[float("nan")], v1_1=[1.0])).score(ANSWERS)
    assert result.metrics["total"] != result.metrics["total"]
    assert result.metrics["std"] != result.metrics["std"]
    assert result.metrics["set/ocr"] == 100


def test_missing_grades(data: str) -> None:
    with pytest.raises(DataError, match="1 questions have no grade: v1_1"):
        MMVet(data, grades=sheet(data, v1_0=[1.0])).score(ANSWERS)
    result = MMVet(data, grades=sheet(data, v1_0=[1.0])).score(ANSWERS, gaps="lenient")
    assert result.metrics["total"] == 50
    assert "1 questions have no grade; counted as 0" in result.notes
    with pytest.raises(DataError, match="1 questions have fewer than 2 grades: v1_1") as error:
        MMVet(data, grades=sheet(data, v1_0=[1.0, 1.0], v1_1=[1.0])).score(ANSWERS)
    assert error.value.fix == "let the judge finish, or runs=1"
    with pytest.raises(DataError, match="no grades file"):
        MMVet(data, grades=data + "/gone.json").score(ANSWERS)


def test_results_for_the_online_evaluator(data: str, tmp_path: Path) -> None:
    rows = tmp_path / "a.jsonl"
    rows.write_text('{"question_id": 1, "text": "b"}\n')
    bench = MMVet(data)
    bench.submission(bench.read(str(rows)), tmp_path / "up.json")
    assert json.loads((tmp_path / "up.json").read_text()) == {"v1_1": "b"}


def test_questions_without_their_answers(tmp_path: Path) -> None:
    (tmp_path / "llava-mm-vet.jsonl").write_text('{"question_id": 0, "image": "v1_0.png", "text": "x?"}\n')
    bench = MMVet(str(tmp_path))
    assert bench.questions()[0].id == "v1_0"
    with pytest.raises(DataError, match="MM-Vet: these files hold no answers"):
        bench.score({"v1_0": "3"})


# ---------------------------------------------------------------------------------------------------------- the judge


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("0.5", 0.5),
        ("1.0 |", 1.0),
        ("0.9\n", 0.9),
        (" 0.5", None),
        ("2", None),
        ("-0.1", None),
        ("half", None),
        (None, None),
    ],
)
def test_a_reply_is_the_number_before_the_first_blank(reply: str | None, score: float | None) -> None:
    assert parse_score(reply) == score


def scripted(*replies: Any) -> tuple[Any, list[tuple[str, float]]]:
    requests: list[tuple[str, float]] = []

    def ask(prompt: str, temperature: float) -> tuple[str | None, str]:
        requests.append((prompt, temperature))
        if isinstance(replies[len(requests) - 1], Exception):
            raise replies[len(requests) - 1]
        return replies[len(requests) - 1], "judge"

    return ask, requests


def test_a_failed_reply_is_asked_again_at_rising_temperatures() -> None:
    ask, requests = scripted("half", "no", "2", "0.7 x")
    assert ask_for_grade(ask, "first", "again", wait=lambda: None) == (0.7, "0.7", "judge")
    assert requests == [("first", 0.0), ("again", 0.0), ("again", 0.5), ("again", 1.0)]


def test_after_five_unreadable_replies_a_sixth_is_asked_and_ignored() -> None:
    ask, requests = scripted("a", "b", "c", "d", "e", "1.0")
    assert ask_for_grade(ask, "first", "again", wait=lambda: None) == (0.0, "1.0", "judge")
    assert [temperature for _, temperature in requests] == [0.0, 0.0, 0.5, 1.0, 1.5, 2.0]


def test_a_busy_judge_is_waited_for() -> None:
    waited: list[int] = []
    ask, requests = scripted("x", BusyError(), "0.3")
    assert ask_for_grade(ask, "first", "again", wait=lambda: waited.append(1)).score == 0.3
    assert requests == [("first", 0.0), ("again", 0.0), ("again", 0.0)]
    assert waited == [1]


def evaluator(data: str, text: str = 'import os\nprompt = """Grade\n"""\n') -> None:
    (Path(data) / "mm-vet_evaluator.py").write_text(text)


def test_a_judge_is_asked_only_for_what_is_missing(
    data: str, stub_judge: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = stub_judge(lambda body: "0.5")
    monkeypatch.setenv("OPENAI_API_KEY", "k-1")
    evaluator(data)
    result = MMVet(data, grades=sheet(data, v1_0=[1.0]), judge=stub.address).score(ANSWERS)
    [request] = stub.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["messages"] == [{"role": "user", "content": "Grade\n\ny? | a|b | b | "}]
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("gpt-4-0613", 3, 0.0)
    assert stub.headers[0]["Authorization"] == "Bearer k-1"
    assert result.metrics["total"] == 75
    assert "judge: gpt-x, stub-judge" in result.notes
    assert "judge's prompt: NOT the official one" in result.notes
    grades = json.loads((Path(data) / "grades.json").read_text())
    assert grades["v1_1"] == {"model": ["stub-judge"], "content": ["0.5"], "score": [0.5], "answer": ["b"]}


def test_grades_of_other_answers_are_refused(data: str, stub_judge: Stub) -> None:
    """One grades file for two runs would give the second the first one's score."""
    stub = stub_judge(lambda body: "1")
    evaluator(data)
    bench = MMVet(data, grades=data + "/new.json", judge=stub.address)
    assert bench.score(ANSWERS).metrics["total"] == 100
    assert MMVet(data, grades=data + "/new.json").score(ANSWERS).metrics["total"] == 100
    for other in (bench, MMVet(data, grades=data + "/new.json")):
        with pytest.raises(DataError, match="1 grades are of other answers than these: v1_1") as error:
            other.score(ANSWERS | {"v1_1": "c"})
        assert (error.value.at, error.value.fix[:31]) == (data + "/new.json", "a grades file of its own for ea")
    assert len(stub.requests) == 2


def test_a_judge_has_an_http_address(data: str) -> None:
    with pytest.raises(DataError, match="the judge's address is no http address: localhost:80/v1") as error:
        MMVet(data, judge="localhost:80/v1", grades=data + "/g.json")
    assert error.value.fix == "judge=https://HOST/v1"


def test_and_and_or_get_blanks_around_them(data: str, stub_judge: Stub) -> None:
    stub = stub_judge(lambda body: "1")
    evaluator(data)
    MMVet(data, grades=data + "/new.json", judge=stub.address, judge_model="other").score(ANSWERS)
    assert stub.requests[0]["messages"][0]["content"] == "Grade\n\nx? | -2 <AND> 3 | 3 | "
    assert "Authorization" not in stub.headers[0]


def test_a_judge_needs_a_file_for_its_grades_and_a_prompt(data: str) -> None:
    with pytest.raises(DataError, match="a judge is named, but no file to keep its grades in"):
        MMVet(data, judge="http://127.0.0.1:1/v1")
    with pytest.raises(
        DataError, match=r"asking a judge needs its prompt, and there is no mm-vet_evaluator.py"
    ) as error:
        MMVet(data, judge="http://127.0.0.1:1/v1", grades=data + "/g.json")
    assert "github.com/yuweihao/MM-Vet" in error.value.fix


@pytest.mark.parametrize(
    ("text", "what"), [("def (", "not Python"), ("prompt = 1\n", "no `prompt = ...` in the evaluator")]
)
def test_an_evaluator_without_a_prompt(text: str, what: str, data: str) -> None:
    evaluator(data, text)
    with pytest.raises(DataError, match=what):
        prompt_in(None, DataLocation(data))


TROUBLES = {401: "the judge says 401", 500: "the judge says 500", 429: "the judge says 429"}


@pytest.mark.parametrize("status", TROUBLES)
def test_a_judge_that_refuses(status: int, stub_judge: Stub) -> None:
    judge = Judge(stub_judge(lambda _: status).address, pause=0, patience=2)
    with pytest.raises(DataError, match=TROUBLES[status]) as error:
        ask_for_grade(judge.ask, "a", "b", judge.wait)
    assert error.value.fix == (
        "set OPENAI_API_KEY" if status == 401 else "grades so far are kept; the same command goes on"
    )
    assert judge.busy == (2 if status == 429 else 0)


def test_a_judge_that_is_no_chat_endpoint(stub_judge: Stub) -> None:
    judge = Judge(stub_judge(lambda _: {"error": "x"}).address)
    with pytest.raises(DataError, match="the judge's answer has no 'choices'"):
        judge.ask("a", 0.0)


def test_a_judge_that_is_not_there() -> None:
    with pytest.raises(DataError, match="the judge does not answer"):
        Judge("http://127.0.0.1:1/v1", timeout=1).ask("a", 0.0)


def test_tenths_are_rounded_as_numpy_rounds_them() -> None:
    np = pytest.importorskip("numpy")
    for value in (0.25, 43.75, 49.05, 0.35, 12.449999, 100.0):
        assert nearest_tenth(value) == float(np.round(value, 1))
