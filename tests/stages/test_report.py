"""The report of a study: every arm's mean and spread, paired differences and their intervals, losses; gains or not."""

import itertools
import json
import statistics
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mmalign.errors import RunError
from mmalign.io.pictures import base64_png
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.stages import cells, charts, curves, draw, explored, plots, report
from tests.conftest import command

ACCURACY = {  # arm: that of each seed
    "baseline": [50.0, 60.0, 55.0, 52.0, 58.0],
    "better": [53.0, 61.0, 60.0, 54.0, 60.0],
    "worse": [49.0, 60.0, 50.0, 52.0, 51.0],
}


def finished(folder: Path, name: str, kind: str, **more: object) -> Path:
    about = {"format": 1, "name": name, "kind": kind, "seconds": 1.0, "devices": 1, "reads": [], "seed": 0, "what": {}}
    about |= more
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text(json.dumps(about))
    return folder


def study(runs: Path, arms: dict[str, list[float]]) -> tuple[list[Path], list[str]]:
    """The finished stages of a study: a training below each evaluation; the first arm lacks the loss `extra`."""
    scores, names = [], []
    for arm, values in arms.items():
        for seed, value in enumerate(values, 1):
            terms = {"lm": value / 100} | ({} if arm == "baseline" else {"extra": seed})
            settings = {"objectives": {term: {"weight": 1.0} for term in terms}}
            more = {"metrics": {"step": 20, "pairs": 7.0, **terms}, "what": {"settings": settings}, "seed": seed}
            place = finished(runs / f"train-{arm}-{seed}", "align", "train", **more)
            rows = [{"step": step, "lm": value / step, "lr": 1e-3} for step in (10, 20)]
            (place / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            about = {"metrics": {"pope": {"accuracy": value, "f1": 1.0}}, "headlines": {"pope": "accuracy"}}
            about |= {"reads": [["weights", place.name]], "what": {"settings": {}}, "seed": 0}
            scores.append(finished(runs / f"evaluate-{arm}-{seed}", "score", "evaluate", **about))
            names.append(f"{arm} {seed}")
    return scores, names


def test_mean_spread_and_paired_differences_by_hand(tmp_path):
    found = report.cells(*study(tmp_path, ACCURACY))
    of = {(cell.arm, cell.bench, cell.metric): cell for cell in found}
    for arm, values in ACCURACY.items():
        cell = of[arm, "pope", "accuracy"]
        assert (cell.mean, cell.spread, cell.headline) == (statistics.mean(values), statistics.stdev(values), True)
        gaps = [value - base for value, base in zip(values, ACCURACY["baseline"], strict=True)]
        assert cell.difference == (None if arm == "baseline" else pytest.approx(statistics.mean(gaps)))
    assert of["better", "pope", "accuracy"].interval.low > 0  # wider than the gap between the arms' own spreads
    assert of["worse", "pope", "accuracy"].difference < 0  # printed like a gain


def test_metrics_stand_together_and_the_first_arm_leads(tmp_path):
    found = report.cells(*study(tmp_path, ACCURACY))
    assert [(cell.metric, cell.arm) for cell in found] == [
        *((metric, arm) for metric in ("accuracy", "f1", "lm loss") for arm in ACCURACY),
        ("extra loss", "better"),
        ("extra loss", "worse"),
    ]


def test_losses_are_scores_too_and_one_the_first_arm_lacks_has_no_difference(tmp_path):
    found = report.cells(*study(tmp_path, ACCURACY))
    losses = {(cell.arm, cell.metric): cell for cell in found if cell.bench == "align"}
    assert losses["better", "lm loss"].values == {str(n): v / 100 for n, v in enumerate(ACCURACY["better"], 1)}
    assert losses["better", "lm loss"].difference == pytest.approx(0.026)
    assert losses["worse", "extra loss"].difference is None
    assert {metric for _, metric in losses} == {"lm loss", "extra loss"}  # and no learning rate, no number of pairs


def test_the_interval_is_that_of_every_way_to_draw_the_seeds_again():
    base, other = (dict(enumerate(ACCURACY[arm])) for arm in ("baseline", "better"))
    gaps = [other[seed] - base[seed] for seed in base]
    exact = np.percentile([statistics.mean(drawn) for drawn in itertools.product(gaps, repeat=5)], [2.5, 97.5])
    difference, interval = cells.paired(base, other)
    assert difference == pytest.approx(statistics.mean(gaps))
    assert (interval.low, interval.high) == pytest.approx(exact, abs=0.21)  # a step of the exact distribution is 0.2


def test_only_seeds_that_both_arms_have_are_compared_and_one_pair_has_no_interval():
    assert cells.paired({"1": 5.0, "2": 9.0}, {"2": 10.0, "3": 0.0}) == (1.0, None)
    assert cells.paired({"1": 5.0}, {"2": 9.0}) == (None, None)


def test_a_single_seed_has_no_spread(tmp_path):
    assert [cell.spread for cell in report.cells(*study(tmp_path, {"baseline": [50.0]}))] == [None, None, None]


def test_evaluations_of_one_arm_stand_apart(tmp_path):
    scores, arms = [], ["base 1", "base 1", "other 1", "other 1"]
    for number, value in enumerate((10.0, 50.0, 12.0, 49.0)):
        about = {"metrics": {"pope": {"accuracy": value}}, "headlines": {"pope": "accuracy"}, "seed": 1}
        name = ("before", "after")[number % 2]
        scores.append(finished(tmp_path / f"evaluate-{number}", name, "evaluate", what={"settings": {}}, **about))
    for names in (arms, ["", ""]):  # of a study; of a recipe
        found = {(cell.arm, cell.bench): cell for cell in report.cells(scores[: len(names)], names)}
        first = names[0].rpartition(" ")[0]
        assert found[first, "before: pope"].values == {"1": 10.0}
        assert found[first, "after: pope"].values == {"1": 50.0}
        assert first == "" or found["other", "before: pope"].difference == 2.0


def test_the_answer_beside_an_image_is_that_of_its_own_benchmark(tmp_path):
    metrics = {"probe": {"share": 1.0}, "zoo": {"accuracy": 1.0}, "pope": {"accuracy": 1.0}}
    folder = finished(tmp_path / "evaluate", "score", "evaluate", metrics=metrics)
    for bench, text in (("zoo", "a cat\u2028or two"), ("pope", "Yes")):
        line = json.dumps({"id": "1", "text": text}, ensure_ascii=False)
        (folder / f"{bench}.jsonl").write_text(f"{line}\n", encoding="utf-8")
    assert explored._answers(folder) == {"1": "a cat\u2028or two"}  # the pictures are those of the first that asks


def test_charts_have_a_line_for_every_seed_and_their_mean(tmp_path):
    (chart,) = curves.curves(*study(tmp_path, ACCURACY)).losses
    assert chart.title == "align: lm"
    assert {arm: len(seeds) for arm, seeds in chart.lines.items()} == dict.fromkeys(ACCURACY, 5)
    assert draw.mean(chart.lines["baseline"].values()) == [(10, pytest.approx(5.5)), (20, pytest.approx(2.75))]
    assert draw.mean([[(1, 2.0), (2, 4.0)], [(2, 6.0)]]) == [(2, 5.0)]
    drawn = draw.svg(chart)
    assert drawn.startswith('<svg role="img" aria-label="align: lm"')


def test_what_was_measured_over_training(tmp_path):
    """A chart for each benchmark, an arm's seeds together; grey is what it was before the first step."""
    scores, names = study(tmp_path, {"base": [50.0, 60.0], "other": [40.0]})
    for number, place in enumerate(sorted(tmp_path.glob("train-*"))):
        rows = [{"step": s, "scores": {"mmlu": {"average": 0.3 + number / 10}}, "items": {"mmlu": 300}} for s in (0, 5)]
        (place / "evaluations.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (chart,) = charts.evaluations(scores, names)
    assert chart.title == "align: mmlu average"
    assert chart.lines == {
        "base": {"train-base-1": [(0, 0.3), (5, 0.3)], "train-base-2": [(0, 0.4), (5, 0.4)]},
        "other": {"train-other-1": [(0, 0.5), (5, 0.5)]},
    }
    assert chart.level == pytest.approx(0.4)
    page = report.html(SimpleNamespace(recipe="x"), scores, names, [])
    assert "<h2>Over training</h2>" in page
    assert "#999999" in draw.svg(chart)  # grey
    chart.level = None
    assert "#999999" not in draw.svg(chart)


def layered(folder):
    """Two arms' alignment at each of three layers, with ceilings."""
    scores, names = [], ["base 1", "base 2", "other 1"]
    for number in range(3):
        metrics = {"object": 10.0 + number, "distinct": 3.0}
        for layer in (1, 2, 10):
            metrics |= {f"object_layer_{layer}": 10.0 * layer + number, f"ceiling_layer_{layer}": 100.0 - layer}
        about = {"metrics": {"align": metrics, "pope": {"accuracy": 1.0}}, "headlines": {"align": "object"}}
        about["what"] = {"settings": {}}
        scores.append(finished(folder / "runs" / f"evaluate-{number}", "score", "evaluate", **about))
    return scores, names


def test_what_is_measured_by_layer_is_a_plot_and_no_rows(tmp_path, mmalign):
    scores, names = layered(tmp_path)
    rows = report.cells(scores, names)
    assert sum("_layer_" in cell.metric for cell in rows) == 12
    (chart,) = plots.by_layer(rows)
    assert (chart.title, chart.across, chart.unit) == ("align: object, by layer", "layer", "object")
    assert chart.lines == {
        "base": {"1": [(0, 10), (1, 10), (2, 20), (10, 100)], "2": [(0, 11), (1, 11), (2, 21), (10, 101)]},
        "other": {"1": [(0, 12), (1, 12), (2, 22), (10, 102)]},
    }
    assert chart.dashed["base"] == {seed: [(1, 99), (2, 98), (10, 90)] for seed in ("1", "2")}
    page = report.html(SimpleNamespace(recipe="x"), scores, names, rows)
    assert "<h2>By layer</h2>" in page
    assert "<td>distinct</td>" in page
    assert "_layer_" not in page.partition("<h2>By layer")[0]
    summary = {"cells": [{**vars(c), "mean": c.mean, "spread": c.spread} for c in rows]}
    (tmp_path / "report.json").write_text(json.dumps(summary))
    said = mmalign("report", tmp_path).out
    assert "_layer_" not in said
    assert "object, ceiling by layer of align: plotted on the page, in full in report.json" in said
    assert len(json.loads(mmalign("report", tmp_path, "--json").out)["cells"]) == len(rows)


def test_several_things_by_layer_are_told_apart():
    rows = [
        cells.Cell("", "align", f"{name}_layer_{layer}", {"1": float(layer)}, False)
        for name in ("object", "background", "ceiling")
        for layer in (1, 2)
    ]
    (chart,) = plots.by_layer(rows)
    assert {name: len(seeds) for name, seeds in chart.lines.items()} == {"object": 1, "background": 1}
    assert plots.by_layer(rows[:0]) == []


def test_the_study_in_the_terminal(tmp_path):
    scores, names = study(tmp_path / "runs", {"baseline": [50.0, 60.0], "sea": [53.0, 61.0], "once": [40.0]})
    found = report.cells(scores, names)
    summary = {"cells": [cells.as_json(cell) for cell in found]}
    (tmp_path / "report.json").write_text(json.dumps(summary))
    said = command("report", ".", cwd=tmp_path)
    lines = [" ".join(line.split()) for line in said.out.splitlines()]
    assert lines[:4] == [
        "benchmark metric arm mean ± sd difference",
        "pope accuracy baseline 55.00 ± 7.07",
        "pope accuracy sea 57.00 ± 5.66 +2.00 [+1.00, +3.00]",
        "pope accuracy once 40.00 -10.00",
    ]
    assert "align lm loss sea 0.57 ± 0.06 +0.02 [+0.01, +0.03]" in lines


def test_seeds_alone_are_a_study_too(tmp_path, mmalign):
    found = report.cells(*study(tmp_path, {"seed": ACCURACY["baseline"]}))
    summary = {"cells": [{**vars(cell), "mean": cell.mean, "spread": cell.spread} for cell in found]}
    (tmp_path / "report.json").write_text(json.dumps(summary))
    lines = [" ".join(line.split()) for line in mmalign("report", tmp_path).out.splitlines()]
    assert "pope accuracy seed 55.00 ± 4.12" in lines


def test_the_study_of_seas_labels_shares_what_is_equal():
    nodes = graph.plan(compose.load("study_toy_sea"), "runs")
    assert Counter(node.name for node in nodes) == {"label": 2, "align": 20, "tune": 20, "score": 20, "report": 1}
    arms = {arm.split()[0]: node for node in nodes if node.name == "align" for arm in node.arms}
    assert list(arms) == ["baseline", "sea-full", "sea-clean", "sea-truth"]
    assert {arm: list(node.stage.objectives) for arm, node in arms.items()} == {
        "baseline": ["lm"], "sea-full": ["lm", "sea"], "sea-clean": ["lm", "sea"], "sea-truth": ["lm", "sea"],
    }  # fmt: skip
    (quick,) = (node for node in graph.plan(compose.load("quickstart"), "runs") if node.name == "label")
    assert quick.folder in {node.folder for node in nodes}  # the clean arm's labels are the quickstart's


PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def shown(folder: Path, **changes: object) -> str:
    """The page of one evaluation whose pictures.json has been changed."""
    scores, names = study(folder, {"base": [50.0]})
    picture = {"png": PNG, "grid": [1, 2], "words": ["red", "blue"], "question": "What?", "id": "7", **changes}
    (scores[0] / "pictures.json").write_text(json.dumps([picture]))
    task = SimpleNamespace(recipe="x")
    return report.html(task, scores, names, report.cells(scores, names))


def carried(text: str) -> dict:
    """What the page's explorer carries."""
    return json.loads(text.split('class="mmx-data">')[1].split("</script>")[0])


def test_pictures_of_an_older_mmalign_stand_in_the_page(tmp_path):
    data = carried(shown(tmp_path))
    assert [image["png"] for image in data["images"]] == [PNG]
    (picture,) = data["pictures"]
    assert (picture["name"], picture["texts"]) == ("1: What?", [["question", "What?"], ["base answers", ""]])
    (pane,) = picture["panes"]
    assert (pane["name"], pane["grid"], pane["layers"], pane["k"]) == ("base", [1, 2], [0], 1)
    assert data["words"] == ["", "red", "blue"]


def test_tokens_that_are_no_patches(tmp_path):
    assert carried(shown(tmp_path, grid=None))["pictures"][0]["panes"][0]["grid"] is None


LAYERS = {
    "0": {"numbers": [[0, 1], [1, 0]], "cosines": [[0.5, 0.25], [0.5, 0.125]]},
    "4": {"numbers": [[1, 0], [1, 0]], "cosines": [[0.5, 0.25], [0.5, 0.125]]},
}


def arm(folder: Path, right: list[bool], answer: str) -> None:
    """What an evaluation leaves: a picture asked about whose truth is known, and another that is judged alone."""
    row = {
        "png": PNG,
        "grid": [1, 2],
        "words": ["red", "blue"],
        "table": ["red", "blue"],
        "layers": LAYERS,
        "seen": None,
    }
    other = {**row, "png": base64_png(Image.new("RGB", (2, 1))), "question": "", "id": "eval-1"}
    truth = {"words": [["red"], ["sky"]], "object": [True, True], "right": {"0": right, "4": [False, None]}}
    judged = {**row, "question": "", "id": "eval-0", "truth": truth, "remarks": {"4": "40% of perfect"}}
    (folder / "pictures.json").write_text(json.dumps([{**row, "question": "What?", "id": "7"}]))
    (folder / "judged.json").write_text(json.dumps([judged, {**other, "truth": truth}]))
    (folder / "pope.jsonl").write_text(json.dumps({"id": "7", "text": answer}) + "\n")
    (folder / "pope.json").write_text(json.dumps({"metrics": {}, "headline": "accuracy", "items": {"7": 100.0}}))


def test_arms_are_panes_of_one_picture_with_question_answers_and_truth(tmp_path):
    scores, names = study(tmp_path, {"base": [50.0, 60.0], "sea": [53.0, 61.0]})
    arm(scores[0], [True, False], "yes")
    arm(scores[2], [True, True], "no")
    data = carried(report.html(SimpleNamespace(recipe="x"), scores, names, report.cells(scores, names)))
    both, alone = data["pictures"]
    assert [pane["name"] for pane in both["panes"]] == ["base", "sea"]
    assert {pane["image"] for pane in both["panes"]} == {0}
    assert both["texts"] == [
        ["question", "What?"], ["base answers", "yes (right)"], ["sea answers", "no (right)"],
    ]  # fmt: skip
    assert [pane["remarks"] for pane in both["panes"]] == [["", "40% of perfect"]] * 2
    assert (alone["name"], alone["texts"], len(alone["panes"])) == ("2: eval-1", [], 2)
    assert data["shares"]["base"] == [[0, {"2": [2, 4]}], [4, {"2": [0, 2]}]]  # over both pictures
    assert data["shares"]["sea"] == [[0, {"2": [4, 4]}], [4, {"2": [0, 2]}]]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"png": "x); background: url(https://example.org/?"}, "`png` is no base64"),
        ({"png": "aGVsbG8="}, "`png` is no PNG file"),
        ({"png": None}, "0.png must be text, got None"),
        ({"grid": [1, "2); color: red"]}, "0.grid"),
        ({"grid": [10**6, 10**6]}, "`grid` is 1000000 x 1000000, and there are 2 tokens"),
        ({"words": 7}, "0.words must be a list of text, got 7"),
        ({"grid": [0, 0], "words": []}, "0.grid.0 must be a whole number of at least 1, got 0"),
    ],
)
def test_pictures_that_are_none_of_ours(tmp_path, changes, what):
    with pytest.raises(RunError, match=f"pictures.json is damaged: .*{what}") as caught:
        shown(tmp_path, **changes)
    assert "pictures.json" in caught.value.at


def test_numbers_that_are_no_words_of_the_table(tmp_path):
    with pytest.raises(RunError, match="pictures.json is damaged: list index out of range"):
        shown(tmp_path, layers=LAYERS, table=["red"])
    with pytest.raises(RunError, match="pictures.json is damaged: layer 0 of 2 patches, and base has 3"):
        shown(tmp_path / "other", layers=LAYERS, table=["red", "blue"], words=["a", "b", "c"], grid=[1, 3])


def test_texts_in_the_page_are_texts(tmp_path):
    text = shown(tmp_path, question="</figcaption><script>\x1b[31m\u202e", words=["<b>", "{{ 7 * 7 }}"])
    assert "</figcaption><script>" not in text
    assert carried(text)["pictures"][0]["texts"][0] == ["question", "</figcaption><script>\\u001b[31m\\u202e"]
    assert carried(text)["words"] == ["", "<b>", "{{ 7 * 7 }}"]


def test_a_name_with_dollars_is_no_formula(tmp_path):
    scores, names = study(tmp_path, {"$\\frac{a": [50.0], "b $x$\x1b": [51.0]})
    drawn = [draw.svg(chart) for chart in curves.curves(scores, names).losses]
    assert all(one.startswith("<svg") for one in drawn)
