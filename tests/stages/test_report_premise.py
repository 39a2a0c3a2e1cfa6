"""BASIC's premise on the report's page: shares over the steps, by layer at the last look, and what was warned of."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmalign.stages import charts, draw, report

WARNING = "BASIC's premise does not hold here: 50.0% before, 20.0% after"
CUT = "2 of 400 samples were cut at max_length 100: 20 trained tokens lost"


def finished(folder: Path, name: str, **more: object) -> Path:
    about = {"format": 1, "name": name, "kind": "train", "seconds": 1.0, "devices": 1, "reads": [], "seed": 0}
    folder.mkdir(parents=True)
    what = {"what": {"settings": {}}, "metrics": {}, "headlines": {}}
    (folder / "stage.json").write_text(json.dumps(about | what | more))
    return folder


@pytest.fixture
def study(tmp_path: Path) -> tuple[list[Path], list[str]]:
    """A baseline, which nobody watches, and two seeds of BASIC, whose layers make fewer and fewer words."""
    scores, arms = [], ["baseline 1", "basic 1", "basic 2"]
    for number, arm in enumerate(arms):
        said = {"warnings": [WARNING], "account": [CUT]} if arm == "basic 2" else {}
        train = finished(tmp_path / f"train-{number}", "tune", **said)
        if number:
            looks = [
                {"step": step, "words": shares, "right": {name: share / 2 for name, share in shares.items()}}
                for step, shares in (
                    (30, {"layer 0": 0.4, "layer 1": 0.3, "layer 2": 0.2, "refined": 0.25}),
                    (60, {"layer 0": 0.5, "layer 1": 0.2, "layer 2": number / 10, "refined": 0.2}),
                )
            ]
            (train / "premise.jsonl").write_text("".join(f"{json.dumps(look)}\n" for look in looks))
        scores.append(finished(tmp_path / f"score-{number}", "score", reads=[["weights", train.name]]))
    return scores, arms


def test_the_curves(study):
    drawn = {chart.title: chart for chart in charts.premise(*study)}
    assert list(drawn) == [
        f"{name}: nearest to a {kind}{by}"
        for kind in ("word", "true word")
        for name, by in (("tune basic", ""), ("tune", ", by layer"))
    ]
    over = drawn["tune basic: nearest to a word"]
    assert over.across == "optimizer step"
    both = {"train-1": [(30, 0.4), (60, 0.5)], "train-2": [(30, 0.4), (60, 0.5)]}
    assert over.lines[charts.BEFORE] == both
    assert over.lines[charts.REFINED]["train-1"] == [(30, 0.25), (60, 0.2)]
    by = drawn["tune: nearest to a true word, by layer"]
    assert by.across == "layer"
    assert by.lines == {
        "basic": {"train-1": [(0, 0.25), (1, 0.1), (2, 0.05)], "train-2": [(0, 0.25), (1, 0.1), (2, 0.1)]}
    }
    assert "<svg" in draw.svg(by)


def test_what_was_warned_of_stands_on_the_page(study):
    assert report.told(*study, "warnings") == [("tune basic 2", WARNING)]
    page = report.html(SimpleNamespace(recipe="mine"), *study, [])
    assert "<h2>Warnings</h2>" in page
    assert "<b>tune basic 2</b>: BASIC&#39;s premise does not hold here" in page
    assert "<h2>BASIC's premise</h2>" in page


def test_what_was_left_out_and_cut_stands_on_the_page(study):
    page = report.html(SimpleNamespace(recipe="mine"), *study, [])
    assert "<h3>Left out and cut</h3>" in page
    assert f"<li><b>tune basic 2</b>: {CUT}</li>" in page


def test_without_basic_there_is_neither(study):
    scores, arms = study
    page = report.html(SimpleNamespace(recipe="mine"), scores[:1], arms[:1], [])
    assert "Warnings" not in page
    assert "Left out" not in page
    assert "premise" not in page


def test_each_readout_has_charts_with_its_own_ceiling(tmp_path):
    """Dashed; and none of a readout that was not read, nor of a share that it has not."""
    train = finished(tmp_path / "train-0", "tune")
    own = {"right": {"layer 0": 0.4, "layer 1": 0.6, "refined": 0.6}, "ceiling": {"layer 1": 0.9, "refined": 0.9}}
    first = {"step": 0, "words": {"layer 0": 0.5, "layer 1": 0.1, "refined": 0.1}, "lens": own}
    last = {**first, "step": 4, "ceiling": {"layer 0": 1.0, "layer 1": 0.2, "refined": 0.2}}
    (train / "premise.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(last)}\n")
    score = finished(tmp_path / "score-0", "score", reads=[["weights", train.name]])
    drawn = {chart.title: chart for chart in charts.premise([score], [""])}
    lens = "tune: nearest to a true word, read by lens"
    assert set(drawn) == {
        "tune: nearest to a word", "tune: nearest to a word, by layer", lens, f"{lens}, by layer",
    }  # fmt: skip
    assert drawn[lens].lines[charts.REFINED] == {"train-0": [(0, 0.6), (4, 0.6)]}
    assert drawn[lens].dashed == {charts.REFINED: {"train-0": [(0, 0.9), (4, 0.9)]}}
    assert drawn["tune: nearest to a word"].dashed == {charts.REFINED: {"train-0": [(4, 0.2)]}}
    by = drawn[f"{lens}, by layer"]
    assert by.lines == {"tune": {"train-0": [(0, 0.4), (1, 0.6)]}}
    assert by.dashed == {"tune": {"train-0": [(1, 0.9)]}}
    assert "stroke-dasharray" in draw.svg(by)
    by.dashed = {}
    assert "stroke-dasharray" not in draw.svg(by)
