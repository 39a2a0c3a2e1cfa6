"""The one number in which the arms of a study differ, and the charts of the scores over it."""

from pathlib import Path

import pytest

from mmalign.pipeline import task
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.stages import draw, settings, verdict
from mmalign.stages.measures import Measure
from mmalign.stages.questions import Span
from mmalign.stages.settings import Setting


def planned(recipe: str, runs: Path, *words: str) -> tuple[list[Path], list[str]]:
    """The evaluations of a recipe and their arms, done as far as a report can tell."""
    nodes = graph.plan(compose.load(recipe, list(words)), runs)
    for node in nodes:
        task.save(node)
        task.finish(task.load(node.folder), {"metrics": {}, "headlines": {}}, 0, 1)
    report = next(node for node in nodes if node.stage.kind == "report")
    return [other.folder for _, other in report.reads], report.arms


LAYERS = [  # BASIC's figure 6: what goes along with each other is one setting
    f"{stage}.objectives.basic-{loss}.layers" for stage in ("align", "tune") for loss in ("direction", "distribution")
]


@pytest.mark.parametrize(
    ("recipe", "name", "keys", "values"),
    [
        ("basic_ablation_layers", "layers", LAYERS, [4, 8, 12, 16, 20, 24, 28, 32]),
        ("sea_study_words_kept", "keep of labels", ["align.labels.keep"], [10, 1, 3, 5, 20]),
        ("sea_study_window", "window of sea", ["align.objectives.sea.window"], [2, 1, 3, 4]),
        ("sea_study_lambda", "weight of sea", ["align.objectives.sea.weight"], [1, 0, 0.1, 0.3, 3]),
    ],
)
def test_shipped_studies_of_one_number(recipe, name, keys, values, tmp_path):
    setting = settings.varied(*planned(recipe, tmp_path))
    assert setting is not None
    assert (setting.name, sorted(setting.keys), setting.without) == (name, sorted(keys), [])
    assert list(setting.values.values()) == values


@pytest.mark.parametrize("recipe", ["sea_data", "sea_no_pretraining", "basic_ablation_losses", "study_toy_sea"])
def test_arms_that_differ_otherwise_have_none(recipe, tmp_path):
    assert settings.varied(*planned(recipe, tmp_path)) is None


MATRIX = """
extends: quickstart
name: windows
matrix:
  arms:
    base: {stages.align.reads.labels: null, stages.align.objectives.sea: null}
    one: {stages.align.objectives.sea.args: {window: 1}}
    two: {}
    four: {stages.align.objectives.sea.args: {window: 4}}
"""


def test_an_arm_without_the_objective_lacks_its_settings(tmp_path):
    (tmp_path / "windows.yaml").write_text(MATRIX)
    setting = settings.varied(*planned(str(tmp_path / "windows.yaml"), tmp_path / "runs"))
    assert setting is not None
    assert (setting.values, setting.without) == ({"one": 1.0, "two": 2.0, "four": 4.0}, ["base"])  # 2: the default


def test_a_second_difference_and_two_values_are_no_line(tmp_path):
    recipe = tmp_path / "windows.yaml"
    recipe.write_text(MATRIX.replace("two: {}", "two: {stages.tune.steps: 7}"))
    assert settings.varied(*planned(str(recipe), tmp_path / "a")) is None
    recipe.write_text(MATRIX.replace("    four", "    # four"))
    assert settings.varied(*planned(str(recipe), tmp_path / "b")) is None


def row(arm: str, mean: float, ends: tuple[float, float] | None = None, spread: float | None = None) -> verdict.Row:
    span = Span(*ends, {"picture": 9}) if ends else None
    return verdict.Row(arm, "pope", "accuracy", 1 if spread is None else 3, mean, spread, span, None, None, 2)


ROWS = [row("base", 50.0, (45.0, 55.0)), row("b", 62.0, (60.0, 64.0)), row("a", 61.0, spread=2.0), row("c", 70.0)]
KNOWN = {("pope", "accuracy"): Measure("share of right answers", "percent", "higher is better")}


def test_the_scores_over_a_setting():
    setting = Setting("keep of labels", ["align.labels.keep"], {"b": 10.0, "a": 1.0, "c": 0.0}, ["base"])
    (chart,) = settings.charts(verdict.Verdict(ROWS), setting, KNOWN)
    assert (chart.across, chart.unit, chart.level) == ("keep of labels", "accuracy (percent)", 50.0)
    assert chart.lines == {"accuracy": {"": [(0.0, 70.0), (1.0, 61.0), (10.0, 62.0)]}}
    assert chart.intervals == {"accuracy": {10.0: (60.0, 64.0), 1.0: (59.0, 63.0)}}
    drawn = draw.svg(chart)
    assert all(f">{text}</text>" in drawn for text in ("0", "1", "10", "keep of labels", "accuracy (percent)"))


def test_the_scores_by_arm_where_the_arms_have_only_names():
    (chart,) = settings.charts(verdict.Verdict(ROWS), None, {})
    assert (chart.places, chart.unit) == (["base", "b", "a", "c"], "accuracy")
    assert chart.lines == {"accuracy": {"": [(0.0, 50.0), (1.0, 62.0), (2.0, 61.0), (3.0, 70.0)]}}
    assert settings.charts(verdict.Verdict(ROWS[:1]), None, {}) == []  # one arm is nothing to compare
    assert ">base</text>" in draw.svg(chart)
