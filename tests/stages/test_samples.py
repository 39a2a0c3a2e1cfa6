"""Questions with truth and answers on the page: drawn by a rule, bounded, and text whatever they say."""

import hashlib
import json
from pathlib import Path

import pytest

from mmalign.benchmarks import Benchmark, Question, Score
from mmalign.benchmarks.filed import by_people
from mmalign.errors import RunError
from mmalign.stages import samples
from mmalign.toyworld.benchmarks import Pope
from tests.stages.test_report import PNG, finished


def order(ids):
    return sorted(ids, key=lambda qid: hashlib.sha256(f"0 {qid}".encode()).hexdigest())


def test_three_right_and_three_others_in_the_order_of_the_hashes():
    items = {str(number): 100.0 * (number % 3 == 0) for number in range(30)} | {"half": 50.0}
    right, other = ([q for q in order(items) if (items[q] == 100) is hit] for hit in (True, False))
    assert samples.drawn(items) == [*right[:3], *other[:3]]
    assert samples.drawn(dict(reversed(items.items()))) == samples.drawn(items)  # whatever their order
    assert samples.drawn({"a": 0.0}) == ["a"]
    assert samples.drawn({}) == []


@pytest.mark.parametrize(
    ("value", "most", "told"), [(1.0, 1.0, "right"), (0.0, 1.0, "wrong"), (30.0, 100.0, "30 of 100")]
)
def test_what_a_value_means(value, most, told):
    assert samples.told(value, most) == told
    assert samples.full({"a": value, "b": most}) == most


def test_a_benchmarks_samples_have_question_truth_answer_and_a_small_picture():
    bench = Pope(images=3)
    answers = {question.id: "yes" for question in bench.questions()}
    kept = samples.of(bench, bench.score(answers), answers)
    assert len(kept) == 6
    assert [sample["value"] for sample in kept] == [100.0] * 3 + [0.0] * 3
    assert [sample["truth"] for sample in kept] == ["yes"] * 3 + ["no"] * 3
    assert all(sample["question"].startswith("is there a") and sample["png"] for sample in kept)


def test_long_texts_are_cut_and_questions_without_a_picture_have_none():
    class Long(Benchmark):
        def questions(self):
            return [Question("1", "x" * 5000)]

    (sample,) = samples.of(Long(), Score({}, "", {"1": 0.0}), {"1": "y" * 5000})
    assert (len(sample["question"]), len(sample["answer"])) == (600, 600)
    assert (sample["png"], sample["truth"]) == (None, "")


def test_what_people_said():
    assert by_people(["red", "dark red", "red"]) == "red (2), dark red"


def kept(runs: Path) -> tuple[list[Path], list[str]]:
    """Two arms, each asked one question; the first kept it as a sample."""
    scores = []
    for arm, (text, value) in {"base": ("<i>no\x1b", 0.0), "other": ("yes", 1.0)}.items():
        about = {"metrics": {"pope": {"accuracy": value}}, "headlines": {"pope": "accuracy"}, "what": {"settings": {}}}
        place = finished(runs / arm, "score", "evaluate", **about)
        score = {"metrics": {"accuracy": value}, "headline": "accuracy", "items": {"7": value, "8": 1.0}}
        (place / "pope.json").write_text(json.dumps(score))
        (place / "pope.jsonl").write_text(json.dumps({"id": "7", "text": text}) + "\n")
        scores.append(place)
    sample = {"id": "7", "question": "<b>?", "truth": "yes", "answer": "no", "value": 0.0, "png": PNG}
    (scores[0] / "pope.samples.json").write_text(json.dumps([sample]))
    return scores, ["base 1", "other 1"]


def test_the_page_shows_each_arms_answer_as_text(tmp_path):
    page = samples.html(samples.shown(*kept(tmp_path)), study=True)
    assert "&lt;b&gt;?" in page
    assert '<span class="note">base</span> &lt;i&gt;no\\u001b <b class="bad">wrong</b>' in page
    assert '<span class="note">other</span> yes <b class="good">right</b>' in page
    assert f"data:image/png;base64,{PNG}" in page
    assert "sha256(&#34;0 &#34; + id)" in page


def test_evaluations_of_an_older_mmalign_have_no_section(tmp_path):
    scores, arms = kept(tmp_path)
    (scores[0] / "pope.samples.json").unlink()
    assert samples.html(samples.shown(scores, arms), study=True).strip() == ""


@pytest.mark.parametrize(
    ("changes", "what"), [({"png": "aGVsbG8="}, "`png` is no PNG file"), ({"value": "x"}, "value")]
)
def test_samples_that_are_none_of_ours(tmp_path, changes, what):
    scores, arms = kept(tmp_path)
    place = scores[0] / "pope.samples.json"
    place.write_text(json.dumps([{**json.loads(place.read_text())[0], **changes}]))
    with pytest.raises(RunError, match=what):
        samples.shown(scores, arms)
