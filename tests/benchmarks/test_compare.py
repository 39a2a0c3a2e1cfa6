"""`mmalign compare`: evaluations side by side, paired by question, and the questions that flipped."""

import base64
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmalign.benchmarks import Score
from mmalign.benchmarks.asked import look
from mmalign.benchmarks.bootstrap import difference
from mmalign.benchmarks.compare import Run, compare, page
from mmalign.benchmarks.headline import Headline
from mmalign.benchmarks.pope import POPE
from mmalign.errors import DataError
from mmalign.pipeline import task
from mmalign.plan.cards import Registry
from mmalign.plan.graph import Node
from mmalign.plan.recipe import Evaluate, Optim, Part, Recipe, Train
from mmalign.toyworld.benchmarks import Attributes, Pope
from tests.conftest import Said
from tests.test_layers import loads

BENCH = Pope(images=3)
ITEMS = {item.question.id: item.answer for item in BENCH.items}
ASKED, _ = look(BENCH)


def run(name: str, wrong: set[int] = frozenset(), protocol: str = "official", old: bool = False) -> Run:
    """Right answers to all questions but some. old: by an mmalign that did not write down what it asked."""
    opposite = {"yes": "no", "no": "yes"}
    answers = {key: opposite[word] if n in wrong else word for n, (key, word) in enumerate(ITEMS.items())}
    asked = {} if old else {"toy-pope": ASKED}
    return Run(name, {"toy-pope": BENCH.score(answers)}, {"toy-pope": answers}, protocol, asked)


def pope(folder: Path, rows: Sequence[tuple[str, str, str]], replies: Sequence[str]) -> Run:
    """Answers to a POPE in the official layout: (picture, question, label) counted from 1."""
    (folder / "coco").mkdir(parents=True)
    (folder / "val2014").mkdir()
    for name in {picture for picture, _, _ in rows}:
        Image.new("RGB", (8, 8), folder.name if name == "same.jpg" else name.removesuffix(".jpg")).save(
            folder / "val2014" / name
        )
    lines = [{"question_id": n, "image": i, "text": t, "label": label} for n, (i, t, label) in enumerate(rows, 1)]
    (folder / "coco" / "coco_pope_random.json").write_text("\n".join(map(json.dumps, lines)))
    bench = POPE(str(folder))
    asked, problems = look(bench)
    assert not problems
    answers = dict(zip((question.id for question in bench.questions()), replies, strict=True))
    return Run(folder.name, {"pope": bench.score(answers)}, {"pope": answers}, asked={"pope": asked})


def test_the_difference_is_that_of_the_shown_headlines_and_flips_are_named():
    one, two = run("one", {0, 1, 2}), run("two", {2, 5})
    (row,) = compare([one, two])
    assert (row.bench, row.metric, row.notes) == ("toy-pope", "accuracy", [])
    assert row.values == [one.scores["toy-pope"].metrics["accuracy"], two.scores["toy-pope"].metrics["accuracy"]]
    (over,) = row.against
    names = list(ITEMS)
    assert (over.better, over.worse) == (names[:2], [names[5]])
    assert over.values == pytest.approx(row.values)
    assert over.difference.mean == pytest.approx(row.values[1] - row.values[0])
    heads = [Headline.of(each.scores["toy-pope"]) for each in (one, two)]
    pictures = {qid: qid.partition("-")[0] for qid in ITEMS}
    assert over.difference == pytest.approx(difference(*heads, pictures))
    assert over.questions == len(ITEMS)
    assert (over.cluster, over.clusters) == ("picture", 3)


def test_the_headline_is_compared_and_no_mean_beside_it():
    """Topics of different sizes: the mean over them is not the mean over questions (a16)."""
    bench = Attributes(images=4)
    right = {item.question.id: item.answer for item in bench.items}
    wrong = {next(item.question.id for item in bench.items if item.group == "count"): "?"}
    asked, _ = look(bench)
    one, two = (
        Run(n, {"t": bench.score(a)}, {}, asked={"t": asked}) for n, a in (("one", right | wrong), ("two", right))
    )
    (row,) = compare([one, two])
    gap = row.against[0].difference
    assert gap.mean == pytest.approx(row.values[1] - row.values[0])
    assert gap.mean != pytest.approx(100 / len(right), rel=0.01)  # what the mean over questions rose by
    assert gap.low <= gap.mean <= gap.high


def test_f1_is_compared_as_f1(tmp_path):
    rows = [(f"{color}.jpg", f"Is there a {thing}?", label) for color in ("red", "green", "blue")
            for thing, label in (("cat", "yes"), ("dog", "yes"), ("cow", "no"))]  # fmt: skip
    one = pope(tmp_path / "red", rows, ["yes", "no", "no"] * 3)
    two = pope(tmp_path / "blue", rows, ["yes", "yes", "yes", *["yes", "no", "no"] * 2])
    (row,) = compare([one, two])
    assert row.values == pytest.approx([2 / 3, 8 / 11])
    (over,) = row.against
    assert over.difference.mean == pytest.approx(8 / 11 - 2 / 3)
    assert (over.cluster, over.clusters) == ("picture", 3)
    assert (over.better, over.worse) == (["10000002"], ["10000003"])


def test_other_pictures_are_other_questions(tmp_path):
    """Ids from 1 in both, the same texts, even the same names of files: nothing is in common (a14)."""
    texts = [(f"Is there a {thing}?", "yes") for thing in ("cat", "dog")]
    replies = ["yes"] * 2
    for name, other in (("red.jpg", "green.jpg"), ("same.jpg", "same.jpg")):
        one = pope(tmp_path / name / "red", [(name, *text) for text in texts], replies)
        two = pope(tmp_path / name / "blue", [(other, *text) for text in texts], replies)
        with pytest.raises(DataError) as told:
            compare([one, two])
        assert told.value.what == (
            "red and blue have no question of pope in common; "
            "a question is known by its text, its options and its picture"
        )
        assert told.value.fix == "evaluate both on the same questions and pictures"


def test_questions_are_matched_by_content_not_by_number(tmp_path):
    """The same questions in another order, so under other ids, each three times: no difference (a15)."""
    rows = [(f"{color}.jpg", f"Is there a {thing}?", label) for color in ("red", "green", "blue", "white")
            for thing, label in (("cat", "yes"), ("dog", "no"))]  # fmt: skip
    replies = ["yes", "no", "yes", "yes", "no", "no", "yes", "no"]
    one = pope(tmp_path / "one", rows, replies)
    mixed = [*reversed(range(8)), *range(8), *range(0, 8, 2), *range(1, 8, 2)]
    two = pope(tmp_path / "two", [rows[n] for n in mixed], [replies[n] for n in mixed])
    (row,) = compare([one, two])
    (over,) = row.against
    assert over.questions == 8
    assert over.difference == (0, 0, 0, 1)
    assert (over.better, over.worse) == ([], [])
    assert row.notes == ["pope: 16 copies of questions are not counted again"]
    thrice = pope(tmp_path / "thrice", [rows[n] for n in mixed], ["no", *[replies[n] for n in mixed][1:]])
    (row,) = compare([two, thrice])
    assert row.against[0].questions == 8
    once = pope(tmp_path / "once", rows, replies)
    ((worse,),) = [row.against for row in compare([one, pope(tmp_path / "worse", rows, ["no", *replies[1:]])])]
    both = [pope(tmp_path / n, rows * 3, r * 3) for n, r in (("a", replies), ("b", ["no", *replies[1:]]))]
    ((three,),) = [row.against for row in compare(both)]
    assert three.difference == pytest.approx(worse.difference)  # three copies make nothing surer
    assert compare([one, once])[0].against[0].difference == (0, 0, 0, 1)


def test_only_the_same_questions_are_paired_and_the_others_told(tmp_path):
    rows = [(f"{color}.jpg", f"Is there a {thing}?", label) for color in ("red", "green", "blue")
            for thing, label in (("cat", "yes"), ("dog", "yes"))]  # fmt: skip
    one = pope(tmp_path / "one", rows, ["yes", "yes", "no", "yes", "yes", "no"])
    changed = [*rows[:4], (rows[4][0], "Is there a cow?", "yes")]
    two = pope(tmp_path / "two", changed, ["yes", "no", "yes", "yes", "no"])
    two.protocol = "lmms-eval"
    two.scores["more"] = Score({"m": 1.0}, "m")
    row, more = compare([one, two])
    assert row.notes == [
        "pope: one is scored as official, two as lmms-eval",
        "pope: 3 questions are in one or two only, and left out; 1 ids mean another question in each",
    ]
    (over,) = row.against
    assert over.questions == 4
    assert over.values == pytest.approx((6 / 7, 6 / 7))  # of these four; of all it was asked, 8 / 10 and 6 / 8
    assert over.difference.mean == pytest.approx(over.values[1] - over.values[0])
    assert row.values == pytest.approx([8 / 10, 6 / 8])
    assert (more.values, more.against) == ([None, 1.0], [None])


def test_an_evaluation_that_did_not_say_what_it_asked_is_matched_by_id():
    one, two = run("one", {0}), run("two", old=True)
    (row,) = compare([one, two])
    assert row.against[0].difference.mean > 0
    assert (row.against[0].cluster, row.against[0].clusters) == ("picture", 3)  # as the other says
    by_id = "toy-pope: questions are matched by their ids alone: what {} asked was not written down by an older mmalign"
    assert row.notes == [by_id.format("two")]
    (row,) = compare([run("one", old=True), two])
    assert row.against[0].cluster == "question"
    assert row.notes == [
        by_id.format("one and two"),
        "toy-pope: nor are their pictures known: the interval is by question, and may be too narrow",
    ]
    two.scores["toy-pope"].items = {"x": 1.0}
    two.scores["toy-pope"].parts, two.scores["toy-pope"].metrics = {}, {"accuracy": 1.0}
    with pytest.raises(DataError, match="one and two have no question of toy-pope in common\n"):
        compare([one, two])


def test_a_headline_that_is_not_made_of_its_items_has_no_difference():
    first = Run("a", {"x": Score({"m": 3.0}, "m", {"1": 0.0, "2": 0.0, "3": 1.0})})
    other = Run("b", {"x": Score({"m": 0.5}, "m", {"1": 0.3, "2": 0.9, "3": 0.3})})
    (row,) = compare([first, other])
    assert (row.against[0].difference, row.against[0].values, row.against[0].better) == (None, None, ["2", "1"])
    assert "x: no difference: the score of a does not say how m is made of its questions" in row.notes
    second = Run("c", {"x": Score({"n": 0.5}, "n", {"1": 0.3, "2": 0.9, "3": 0.3})})
    (row,) = compare([other, second])
    assert "x: no difference: the headline of b is m, of c n" in row.notes


def test_the_largest_step_comes_first():
    first = Run("a", {"x": Score({"m": 0.0}, "m", {"1": 0.0, "2": 0.0, "3": 1.0})})
    other = Run("b", {"x": Score({"m": 0.0}, "m", {"1": 0.3, "2": 0.9, "3": 0.5})})
    (row,) = compare([first, other])
    assert (row.against[0].better, row.against[0].worse) == (["2", "1"], ["3"])


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

    def make(name: str, wrong: set[int] = frozenset(), reads: list[tuple[str, Node]] | None = None, **of: Any) -> Path:
        evaluation = run(name, wrong)
        stage = Evaluate(kind="evaluate", bench=[Part("toy-pope", {"images": 3})])
        card = Registry().card("benchmarks", "toy-pope")
        card.args["images"] = 3
        folder = here / "runs" / f"evaluate-{name}"
        task.save(Node("score", stage, Recipe(name="r"), {"bench.toy-pope": card}, {}, folder, reads or [], **of))
        score = evaluation.scores["toy-pope"]
        lines = (json.dumps({"id": key, "text": text}) + "\n" for key, text in evaluation.answers["toy-pope"].items())
        (folder / "toy-pope.jsonl").write_text("".join(lines))
        (folder / "toy-pope.json").write_text(json.dumps(asdict(score)))
        ASKED.write(folder / "toy-pope.asked.json")
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
    assert row["against"][0]["difference"]["mean"] == pytest.approx(row["values"][1] - row["values"][0])
    assert row["against"][0]["values"] == pytest.approx(row["values"])
    assert (row["against"][0]["cluster"], row["against"][0]["clusters"]) == ("picture", 3)
    assert comparison["notes"] == []
    assert (here / "compare.html").read_text().count("<img") == 3
    result = mmalign("compare", "runs", first, "--out", "other.html")  # of a folder of runs, the newest
    assert result.out.split()[2:][:6] == ["r,", "seed", "42", "(evaluate-bb)", "r,", "seed"]
    assert "over r, seed 42 (evaluate-bb), on the questions both were asked:" in result.out
    assert "picture (3)" in result.out
    assert "page: other.html" in result.out
    assert loads("compare", str(first), str(second)) == {"code": 0, "heavy": []}


def test_runs_are_named_by_recipe_arm_and_seed(finished: Callable[..., Path], mmalign: Callable[..., Said]) -> None:
    model = trained(Path("runs/train-1").absolute(), ["sea 7"])
    first, second = finished("a", arms=["basic 7"]), finished("bb", reads=[("weights", model)])
    comparison = json.loads(mmalign("compare", first, second, finished("ccc"), first, "--json").out)
    assert [one["name"] for one in comparison["runs"]] == [
        "r basic 7 (evaluate-a) 1", "r sea 7", "r, seed 42", "r basic 7 (evaluate-a) 4",
    ]  # fmt: skip


def trained(folder: Path, arms: Sequence[str] = ()) -> Node:
    stage = Train(kind="train", data=Part("toy-chat"), trains=["adapter"], optim=Optim(lr=1e-3), batch=8)
    model = Node("tune", stage, Recipe(name="r"), {}, {}, folder, [], list(arms))
    task.save(model)
    return model


def test_a_trained_model_stands_for_its_newest_evaluation(
    finished: Callable[..., Path], mmalign: Callable[..., Said], here: Path
) -> None:
    model = trained(here / "runs/train-1")
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
