"""What a report says first: headlines, intervals that mmalign makes elsewhere, and marks where the numbers are."""

import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from mmalign.benchmarks import Score, bootstrap
from mmalign.benchmarks.asked import Asked
from mmalign.benchmarks.headline import Headline
from mmalign.stages import cells, forest, report, verdict
from mmalign.stages.questions import Span
from tests.stages.test_report import ACCURACY, finished, study

ODD = r"50% _of_ <b>&#{a}$x$~^\ "


def asked_study(
    runs: Path, arms: dict[str, list[float]], pictures: bool = True, seed: int = 5
) -> tuple[list[Path], list[str]]:
    """One seed of some arms, each with its value on every question, two questions a picture."""
    scores, names = [], []
    for number, (arm, values) in enumerate(arms.items()):
        mean = sum(values) / len(values)
        about = {"metrics": {"pope": {"accuracy": mean, "f1": 1.0}}, "headlines": {"pope": "accuracy"}, "seed": seed}
        place = finished(runs / f"evaluate-{number}-{seed}", "score", "evaluate", what={"settings": {}}, **about)
        items = {str(question): value for question, value in enumerate(values)}
        (place / "pope.json").write_text(json.dumps(asdict(Score(about["metrics"]["pope"], "accuracy", items))))
        if pictures:
            questions = {qid: (f"text-{qid}", f"{int(qid) // 2}.png") for qid in items}
            Asked(questions, {}).write(place / "pope.asked.json")
        scores.append(place)
        names.append(f"{arm} {seed}")
    return scores, names


ANSWERS = {"base": [100.0, 0, 0, 100, 100, 0, 0, 0], "better": [100.0, 100, 0, 100, 100, 100, 0, 0], "same": [50.0] * 8}


def made(folder: Path, scores: list[Path], arms: list[str]) -> tuple[dict, str]:
    """report.json and the page, as the stage makes them."""
    folder.mkdir()
    reads = [("scores", place) for place in scores]
    task = SimpleNamespace(recipe=ODD, folder=folder, reads=reads, arms=arms, asked=[], sources={})
    report.run(task)
    return json.loads((folder / "report.json").read_text()), (folder / "report.html").read_text()


def drawn(page: str) -> ElementTree.Element | None:
    found = re.search(r'<svg class="forest".*?</svg>', page, re.S)
    return ElementTree.fromstring(found[0].replace(' xmlns="http://www.w3.org/2000/svg"', "")) if found else None


def test_of_several_seeds_the_intervals_are_the_cells(tmp_path):
    scores, arms = study(tmp_path, ACCURACY)
    rows = cells.cells(scores, arms)
    said = verdict.of(rows)
    own = {cell.arm: cell for cell in rows if cell.headline}
    assert [row.arm for row in said.rows] == list(own)
    for row in said.rows:
        cell = own[row.arm]
        assert (row.mean, row.spread, row.difference) == (cell.mean, cell.spread, cell.difference)
        assert row.gap == cell.interval
        assert row.gap is None or row.gap.drawn == {"seed": 5}  # this study kept no questions
        assert row.interval is None
    worse = "lower" if own["worse"].interval.high < 0 else "not told apart"
    assert [row.told for row in said.rows] == ["", "higher", worse]


def test_of_one_seed_they_are_those_of_compare_and_score_by_picture(tmp_path):
    scores, arms = asked_study(tmp_path, ANSWERS)
    said = verdict.of(cells.cells(scores, arms))
    pictures = {str(question): f"{question // 2}.png" for question in range(8)}
    heads = {arm: Headline.mean({str(n): value for n, value in enumerate(values)}) for arm, values in ANSWERS.items()}
    for row in said.rows:
        own = bootstrap.interval(heads[row.arm], pictures)
        assert row.interval == Span(own.low, own.high, {"picture": 4})
        if row.arm == "base":
            assert (row.difference, row.gap) == (None, None)
        else:
            gap = bootstrap.difference(heads["base"], heads[row.arm], pictures)
            assert row.difference == gap.mean == pytest.approx(row.mean - said.rows[0].mean)
            assert row.gap == Span(gap.low, gap.high, {"picture": 4})
    assert said.notes == []


def test_of_several_seeds_with_questions_seeds_and_pictures_are_drawn(tmp_path):
    """The cells of a study that kept its questions, on the page, in report.json and in the tables alike."""
    by_seed = {
        1: {"base": [100.0, 0, 0, 100, 100, 0, 0, 0], "better": [100.0, 100, 0, 100, 100, 100, 0, 0]},
        2: {"base": [0.0, 0, 0, 100, 100, 0, 100, 0], "better": [100.0, 0, 100, 100, 100, 0, 0, 0]},
        3: {"base": [100.0, 0, 0, 100, 0, 0, 0, 0], "better": [100.0, 0, 0, 100, 100, 0, 0, 100]},
    }
    places = [asked_study(tmp_path / "runs", answers, seed=seed) for seed, answers in by_seed.items()]
    scores, arms = ([one for place in places for one in place[n]] for n in (0, 1))
    pictures = {str(question): f"{question // 2}.png" for question in range(8)}
    heads = [
        [Headline.mean({str(n): v for n, v in enumerate(own)}) for own in one.values()] for one in by_seed.values()
    ]
    expected = bootstrap.crossed(heads, [pictures] * 3)
    rows = cells.cells(scores, arms)
    (row,) = [row for row in verdict.of(rows).rows if row.arm == "better"]
    assert row.gap == Span(expected.low, expected.high, {"seed": 3, "picture": 4})
    assert row.difference == pytest.approx(expected.mean)
    over_seeds = cells.paired(
        *({str(n): sum(one[arm]) / 8 for n, one in by_seed.items()} for arm in ("base", "better"))
    )
    assert row.gap.high - row.gap.low > over_seeds[1].high - over_seeds[1].low
    kept, page = made(tmp_path / "report", scores, arms)
    (cell,) = [one for one in kept["cells"] if one["arm"] == "better" and one["headline"]]
    assert (cell["interval"], cell["drawn"]) == ([expected.low, expected.high], {"seed": 3, "picture": 4})
    assert page.count("3 seeds, 4 pictures") == 2  # in the verdict and in the scores
    assert "3 seeds, 4 pictures" in (tmp_path / "report" / "report.tex").read_text()


def test_a_seed_without_questions_leaves_the_interval_to_the_seeds(tmp_path):
    places = [asked_study(tmp_path, ANSWERS, seed=seed) for seed in (1, 2)]
    scores, arms = ([one for place in places for one in place[n]] for n in (0, 1))
    (scores[-1] / "pope.json").unlink()
    rows = {cell.arm: cell for cell in cells.cells(scores, arms) if cell.headline}
    assert rows["better"].interval.drawn == {"seed": 2, "picture": 4}
    assert rows["same"].interval.drawn == {"seed": 2}


def test_without_a_record_of_the_questions_the_interval_is_by_question_and_says_so(tmp_path):
    scores, arms = asked_study(tmp_path, ANSWERS, pictures=False)
    said = verdict.of(cells.cells(scores, arms))
    assert {row.interval.by for row in said.rows} == {"question"}
    assert any("may be too narrow" in note for note in said.notes)


def test_a_difference_on_the_questions_of_both_says_of_how_many(tmp_path):
    scores, arms = asked_study(tmp_path, {"base": [100.0, 0, 0, 0], "more": [100.0, 100, 0, 0, 0, 0]})
    said = verdict.of(cells.cells(scores, arms))
    assert said.rows[1].difference == 25
    assert "pope, more: the difference is on the 4 questions of both" in said.notes


def test_no_question_in_common_is_a_note_and_no_interval(tmp_path):
    scores, arms = asked_study(tmp_path, {"base": [100.0, 0], "other": [0.0, 0]})
    Asked({"0": ("other", None), "1": ("others", None)}, {}).write(scores[1] / "pope.asked.json")
    said = verdict.of(cells.cells(scores, arms))
    assert (said.rows[1].difference, said.rows[1].gap, said.rows[1].told) == (-50, None, "no interval")
    assert "pope: base and other have no question in common" in said.notes


@pytest.mark.parametrize("kind", ["seeds", "questions"])
def test_every_number_of_the_page_is_report_jsons(tmp_path, kind):
    scores, arms = study(tmp_path / "runs", ACCURACY) if kind == "seeds" else asked_study(tmp_path / "runs", ANSWERS)
    kept, page = made(tmp_path / "report", scores, arms)
    section = page[page.index("<section") : page.index("</section>")]
    lines = re.findall(r"<tr><td>(.*?)</tr>", section, re.S)
    assert len(lines) == len(kept["verdict"]["rows"]) == 3
    for line, row in zip(lines, kept["verdict"]["rows"], strict=True):
        shown = re.findall(r"[-+]?\d+\.\d+", line)
        own, gap = row["interval"], row["gap"]
        expected = [f"{row['mean']:.2f}"]
        expected += [f"{row['spread']:.2f}"] if row["spread"] is not None else []
        expected += [f"{own['low']:.2f}", f"{own['high']:.2f}"] if own else []
        expected += [f"{row['difference']:+.2f}", f"{gap['low']:+.2f}", f"{gap['high']:+.2f}"] if gap else []
        assert shown == expected
        assert row["told"] in line
    of = {(cell["arm"], cell["bench"], cell["metric"]): cell for cell in kept["cells"]}
    assert all(row["mean"] == of[row["arm"], row["bench"], row["metric"]]["mean"] for row in kept["verdict"]["rows"])


def test_the_marks_lie_where_the_numbers_say(tmp_path):
    kept, page = made(tmp_path / "report", *study(tmp_path / "runs", ACCURACY))
    plot = drawn(page)
    rows = [row for row in kept["verdict"]["rows"] if row["difference"] is not None]
    marks = plot.findall(".//g[@class='mark']")
    assert len(marks) == len(rows) == 2
    zero = float(plot.find(".//line[@class='zero']").get("x1"))
    circles = [float(mark.find("circle").get("cx")) for mark in marks]
    unit = (circles[0] - circles[1]) / (rows[0]["difference"] - rows[1]["difference"])  # of x, for one point
    assert unit > 0
    for mark, row, x in zip(marks, rows, circles, strict=True):
        line = mark.find("line")
        assert x == pytest.approx(zero + unit * row["difference"], abs=0.05)
        assert float(line.get("x1")) == pytest.approx(zero + unit * row["gap"]["low"], abs=0.05)
        assert float(line.get("x2")) == pytest.approx(zero + unit * row["gap"]["high"], abs=0.05)
        assert mark.find("circle").get("class") == ("apart" if row["told"] in ("higher", "lower") else "near")
        assert f"{row['difference']:+.2f}" in mark.findall("text")[1].text
    for tick in plot.findall(".//text[@class='tick']"):
        assert float(tick.get("x")) == pytest.approx(zero + unit * float(tick.text), abs=0.05)


def test_the_plot_has_words_for_those_who_do_not_see_it_and_needs_no_network(tmp_path):
    kept, page = made(tmp_path / "report", *study(tmp_path / "runs", ACCURACY))
    plot = drawn(page)
    assert plot.get("role") == "img"
    assert plot.get("aria-labelledby").split() == [plot.find("title").get("id"), plot.find("desc").get("id")]
    for row in kept["verdict"]["rows"][1:]:
        said = f"pope accuracy, {row['arm']}: {row['difference']:+.2f} [{row['gap']['low']:+.2f}, "
        assert said in plot.find("desc").text
    assert "prefers-color-scheme: dark" in page
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?https?:|url\(\s*[\"']?https?:|@import", page)


def test_names_are_text_on_the_page(tmp_path):
    scores, arms = study(tmp_path / "runs", {"base": [50.0, 60.0], "<i>&\u202eo": [53.0, 61.0]})
    _, page = made(tmp_path / "report", scores, arms)
    assert "<i>&" not in page.replace("<i>Not", "")
    assert "&lt;i&gt;&amp;\\u202eo" in page
    assert drawn(page) is not None


def test_long_names_leave_room_for_the_numbers():
    mark = forest.Mark("a" * 80, 1.0, None, "+1.00 [+0.50, +1.50]", "")
    assert len(mark.label) + len(mark.text) == forest.LONGEST
    assert mark.label.endswith("…")
    assert forest.Mark("a" * 80, 1.0, None, "9" * 60, "").label == "aaaaaaa…"


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, 1e12])
def test_any_difference_has_a_scale_with_zero_in_it(value):
    (panel,) = forest.placed([forest.Panel("x", [forest.Mark("a", value, None, "", "")])])
    assert forest.LEFT <= panel.marks[0].x <= forest.RIGHT
    assert (panel.zero_x, "0") in panel.ticks
    assert 1 < len(panel.ticks) <= 2 * forest.TICKS


def test_fractions_have_more_digits(tmp_path):
    scores, arms = asked_study(tmp_path, {"base": [1.0, 0, 0, 0], "other": [1.0, 1, 0, 0]})
    said = verdict.of(cells.cells(scores, arms))
    assert [row.number(row.mean) for row in said.rows] == ["0.2500", "0.5000"]


def test_one_run_has_its_scores_with_intervals_and_no_plot(tmp_path):
    scores, _ = asked_study(tmp_path / "runs", {"": ANSWERS["base"]})
    kept, page = made(tmp_path / "report", scores, [])
    (row,) = kept["verdict"]["rows"]
    assert row["interval"]["drawn"].keys() == {"picture"}
    assert f"{row['interval']['low']:.2f} to {row['interval']['high']:.2f}" in page
    assert drawn(page) is None


def test_one_arm_of_several_seeds_has_a_spread_and_no_plot(tmp_path):
    kept, page = made(tmp_path / "report", *study(tmp_path / "runs", {"alone": ACCURACY["baseline"]}))
    assert kept["verdict"]["rows"][0]["seeds"] == 5
    assert "± sd (seeds)" in page
    assert drawn(page) is None


def test_without_intervals_there_is_a_page_and_a_point(tmp_path):
    scores, arms = study(tmp_path / "runs", {"base": [50.0], "other": [52.0]})  # no scores of single questions
    kept, page = made(tmp_path / "report", scores, arms)
    assert [row["told"] for row in kept["verdict"]["rows"]] == ["", "no interval"]
    (mark,) = drawn(page).findall(".//g[@class='mark']")
    assert mark.find("line") is None


def test_without_benchmarks_there_is_a_page(tmp_path):
    about = {"metrics": {}, "headlines": {}, "what": {"settings": {}}}
    kept, page = made(tmp_path / "report", [finished(tmp_path / "evaluate", "score", "evaluate", **about)], [""])
    assert kept["verdict"] == {"rows": [], "notes": []}
    assert "No benchmark has a headline score here" in page


def test_a_score_that_is_no_number_is_no_mark(tmp_path):
    scores, arms = study(tmp_path, {"base": [50.0, 51.0], "other": [math.nan, 52.0]})
    said = verdict.of(cells.cells(scores, arms))
    assert said.forests == []
    assert "nan" in verdict.html(said)


def test_evaluations_of_one_arm_have_verdicts_of_their_own(tmp_path):
    scores = [asked_study(tmp_path / name, {"base": ANSWERS[name]})[0][0] for name in ("base", "better")]
    for place, name in zip(scores, ("before", "after"), strict=True):
        about = json.loads((place / "stage.json").read_text())
        (place / "stage.json").write_text(json.dumps({**about, "name": name}))
    said = verdict.of(cells.cells(scores, ["base 1", "base 1"]))
    assert [(row.bench, row.mean) for row in said.rows] == [("before: pope", 37.5), ("after: pope", 62.5)]
