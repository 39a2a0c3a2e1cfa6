"""`mmalign compare`: evaluations side by side, paired by question, and the questions that flipped."""

import base64
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from mmalign.benchmarks import Score
from mmalign.benchmarks.bootstrap import difference
from mmalign.benchmarks.compare import Run, compare, page
from mmalign.errors import DataError
from mmalign.pipeline import task
from mmalign.plan.cards import Registry
from mmalign.plan.graph import Node
from mmalign.plan.recipe import Evaluate, Optim, Part, Recipe, Train
from mmalign.toyworld.benchmarks import Pope
from tests.conftest import Said
from tests.test_layers import loads

BENCH = Pope(images=3)
ITEMS = {item.question.id: item.answer for item in BENCH.items}


def run(name: str, wrong: set[int] = frozenset(), protocol: str = "official") -> Run:
    """Right answers to all questions but some."""
    opposite = {"yes": "no", "no": "yes"}
    answers = {key: opposite[word] if n in wrong else word for n, (key, word) in enumerate(ITEMS.items())}
    return Run(name, {"toy-pope": BENCH.score(answers)}, {"toy-pope": answers}, protocol)


def test_the_difference_is_that_of_the_paired_bootstrap_and_flips_are_named():
    one, two = run("one", {0, 1, 2}), run("two", {2, 5})
    (row,) = compare([one, two])
    assert (row.bench, row.metric) == ("toy-pope", "accuracy")
    assert row.values == [one.scores["toy-pope"].metrics["accuracy"], two.scores["toy-pope"].metrics["accuracy"]]
    (over,) = row.against
    names = list(ITEMS)
    assert (over.better, over.worse) == (names[:2], [names[5]])
    assert over.difference == difference(one.scores["toy-pope"].items, two.scores["toy-pope"].items)
    assert over.difference.mean == pytest.approx(100 / len(ITEMS))
    assert over.questions == len(ITEMS)


def test_the_largest_step_comes_first():
    first = Run("a", {"x": Score({"m": 0.0}, "m", {"1": 0.0, "2": 0.0, "3": 1.0})})
    other = Run("b", {"x": Score({"m": 0.0}, "m", {"1": 0.3, "2": 0.9, "3": 0.5})})
    (row,) = compare([first, other])
    assert (row.against[0].better, row.against[0].worse) == (["2", "1"], ["3"])


def test_only_the_same_questions_are_paired_and_the_others_told():
    one, two = run("one"), run("two", {0}, "lmms-eval")
    del two.scores["toy-pope"].items[list(ITEMS)[-1]]
    two.scores["more"] = Score({"m": 1.0}, "m")
    pope, more = compare([one, two])
    assert pope.against[0].questions == len(ITEMS) - 1
    assert pope.notes == [
        "toy-pope: 1 questions are in one or two only, and left out",
        "toy-pope: one is scored as official, two as lmms-eval",
    ]
    assert (more.values, more.against) == ([None, 1.0], [None])
    nothing = Run("three", {"toy-pope": Score({"accuracy": 1.0}, "accuracy", {"other": 1.0})})
    (apart,) = compare([one, nothing])
    assert (apart.against[0].questions, apart.against[0].difference) == (0, None)


def test_one_run_is_not_compared():
    with pytest.raises(DataError, match="1 run is nothing to compare"):
        compare([run("one")])


def test_the_page_shows_what_flipped_with_its_picture():
    one, two, three = run("<one>", {0, 1}), run("two", set(range(1, 20))), run("three")
    rows = compare([one, two, three])
    text = page([one, two, three], rows, {"toy-pope": BENCH})
    assert "&lt;one&gt;" in text
    assert "<one>" not in text
    assert not re.search(r"(src|href)=.?(http|//)", text)  # all of it is in the page
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", text)
    assert len(pictures) == 1 + 12 + 2  # of 18 that are worse, 12 are shown
    image = Image.open(io.BytesIO(base64.b64decode(pictures[0])))
    assert max(image.size) <= 336
    assert list(image.getdata()) == list(BENCH.image(BENCH.items[0].question.image).convert("RGB").getdata())
    assert "toy-pope: two is worse than &lt;one&gt; on 18" in text
    assert BENCH.items[0].question.text in text
    without = page([one, two], compare([one, two]), {})
    assert "<img" not in without
    assert next(iter(ITEMS)) in without


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def finished(here: Path) -> Callable[..., Path]:
    """finished(name, wrong): the folder of an evaluation that is done."""

    def make(name: str, wrong: set[int] = frozenset(), reads: list[tuple[str, Node]] | None = None) -> Path:
        evaluation = run(name, wrong)
        stage = Evaluate(kind="evaluate", bench=[Part("toy-pope", {"images": 3})])
        card = Registry().card("benchmarks", "toy-pope")
        card.args["images"] = 3
        folder = here / "runs" / f"evaluate-{name}"
        task.save(Node("score", stage, Recipe(name="r"), {"bench.toy-pope": card}, {}, folder, reads or []))
        score = evaluation.scores["toy-pope"]
        lines = (json.dumps({"id": key, "text": text}) + "\n" for key, text in evaluation.answers["toy-pope"].items())
        (folder / "toy-pope.jsonl").write_text("".join(lines))
        (folder / "toy-pope.json").write_text(json.dumps(asdict(score)))
        about = {"metrics": {"toy-pope": score.metrics}, "headlines": {"toy-pope": score.headline}}
        task.finish(task.load(folder), about, 0, 1)
        os.utime(folder / "stage.json", (len(name), len(name)))
        return folder

    return make


def test_the_command(finished: Callable[..., Path], mmalign: Callable[..., Said], here: Path) -> None:
    first, second = finished("a", {0, 1, 2}), finished("bb", {2, 5})
    result = mmalign("compare", first, second, "--json")
    assert result.code == 0, result.err
    comparison = json.loads(result.out)
    (row,) = comparison["rows"]
    assert row["values"] == [run("a", {0, 1, 2}).scores["toy-pope"].metrics["accuracy"], row["values"][1]]
    assert row["against"][0]["better"] == list(ITEMS)[:2]
    assert set(row["against"][0]["difference"]) == {"mean", "low", "high", "p"}
    assert (here / "compare.html").read_text().count("<img") == 3
    result = mmalign("compare", "runs", first, "--out", "other.html")  # of a folder of runs, the newest
    assert "runs" in result.out.splitlines()[0]
    assert f"{first} over runs" in result.out
    assert "page: other.html" in result.out
    assert loads("compare", str(first), str(second)) == {"code": 0, "heavy": []}


def test_a_trained_model_stands_for_its_newest_evaluation(
    finished: Callable[..., Path], mmalign: Callable[..., Said], here: Path
) -> None:
    model = Node(
        "tune",
        Train(kind="train", data=Part("toy-chat"), trains=["adapter"], optim=Optim(lr=1e-3), batch=8),
        Recipe(name="r"),
        {},
        {},
        here / "runs/train-1",
        [],
    )
    task.save(model)
    result = mmalign("compare", "runs/train-1", "runs/train-1")
    assert (result.code, "there is no finished evaluation of runs/train-1" in result.err) == (2, True), result.err
    old, new = finished("a", {0}, reads=[("weights", model)]), finished("bb", {1}, reads=[("weights", model)])
    stranger = finished("ccc", {2})
    comparison = json.loads(mmalign("compare", "runs/train-1", stranger, old, "--json").out)
    assert [Path(one["folder"]).name for one in comparison["runs"]] == [new.name, stranger.name, old.name]


def test_what_cannot_be_compared(finished: Callable[..., Path], mmalign: Callable[..., Said], here: Path) -> None:
    folder = finished("a")
    (here / "empty").mkdir()
    unfinished = finished("bb")
    (unfinished / "stage.json").unlink()
    for words, what, fix in [
        ([folder], "1 run is nothing to compare", "mmalign compare RUN RUN"),
        ([folder, "nowhere"], "no such folder: nowhere", "runs/evaluate-..."),
        ([folder, "empty"], "there is no finished evaluation of empty", "mmalign eval empty --bench NAME"),
        ([folder, unfinished], "is not finished", "the same command that began it goes on"),
    ]:
        result = mmalign("compare", *words)
        assert (result.code, result.out) == (2, "")
        assert what in result.err.splitlines()[0]
        assert fix in result.err.splitlines()[-1]


def test_data_that_is_gone_is_told(finished: Callable[..., Path], mmalign: Callable[..., Said], here: Path) -> None:
    first, second = finished("a", {0}), finished("bb")
    place = first / "stage.yaml"
    place.write_text(place.read_text().replace("mmalign.toyworld.benchmarks.Pope", "mmalign.toyworld.benchmarks.Gone"))
    result = mmalign("compare", first, second)
    assert result.code == 0, result.err
    assert "toy-pope: its questions cannot be shown" in result.err
    assert "mmalign.toyworld.benchmarks has no Gone" in result.err
    assert "<img" not in (here / "compare.html").read_text()
