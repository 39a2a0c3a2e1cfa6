"""The front door: its names are those it documents, nothing heavy comes with it, and results show themselves."""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmalign
from mmalign.errors import CheckError, RecipeError, RunError
from mmalign.pipeline import recipes, task
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.plan.graph import Node
from mmalign.plan.recipe import Recipe
from tests.cli.conftest import finished as trained
from tests.cli.test_models import strangers  # noqa: F401
from tests.conftest import TINY

HEAVY = ("torch", "transformers", "deepspeed", "numpy", "torchvision", "PIL", "yaml", "omegaconf", "jinja2")
SCORES = {"toy-perplexity": {"perplexity": 13.5, "change": -0.25}}

# Names


def test_the_names_agree():
    """`__all__`, where each stands, what a type checker is told, `dir`, and what is there."""
    source = ast.parse(Path(mmalign.__file__).read_text("utf-8"))
    (checked,) = (node for node in source.body if isinstance(node, ast.If))
    told = {alias.name: node.module for node in checked.body for alias in node.names}
    assert all(alias.asname == alias.name for node in checked.body for alias in node.names)  # exported, mypy says
    assert told == mmalign._WHERE
    assert sorted(mmalign.__all__) == sorted(mmalign._WHERE)
    assert len(set(mmalign.__all__)) == len(mmalign.__all__)
    assert dir(mmalign) == sorted([*mmalign.__all__, "__version__"])
    for name, module in mmalign._WHERE.items():
        assert getattr(mmalign, name) is getattr(importlib.import_module(module), name)
        assert getattr(mmalign, name).__module__ == module, f"{name} only passes through {module}"


def test_every_name_of_the_modules_docstring_is_there():
    named = set(re.findall(r"mmalign\.(\w+)\(", mmalign.__doc__))
    assert {"load", "label", "sea_loss", "supervise", "run"} <= named <= set(mmalign.__all__)
    assert all(callable(getattr(mmalign.VLM, name)) for name in re.findall(r"model\.(\w+)\(", mmalign.__doc__))


@pytest.mark.parametrize("name", mmalign.__all__)
def test_every_name_says_what_it_is(name):
    """Its own docstring, not one that a base class or a dataclass made."""
    thing = getattr(mmalign, name)
    assert "__doc__" in vars(thing) or inspect.isfunction(thing)
    assert thing.__doc__
    assert not thing.__doc__.startswith(f"{name}(")


@pytest.mark.parametrize(
    "kind", [mmalign.VLM, mmalign.Supervised, mmalign.Labeller, mmalign.PatchLabels, recipes.Results]
)
def test_every_public_method_says_what_it_does(kind):
    mute = {
        name for name, method in vars(kind).items()
        if inspect.isfunction(method) and not name.startswith("_") and not method.__doc__
    }  # fmt: skip
    assert mute <= {"train", "to"}, mute  # what torch's do


def test_it_comes_with_nothing_heavy():
    code = f"import sys, mmalign; dir(mmalign); print([name for name in {HEAVY} if name in sys.modules])"
    line = [sys.executable, "-c", code]
    assert subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_name_loads_no_more_than_it_needs():
    """A preview plans, so torch stays where it is."""
    code = "import sys, mmalign; mmalign.preview, mmalign.Recipe, mmalign.run; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'mmalign' has no attribute 'laod'; it has VLM, .*, load, "):
        mmalign.laod  # noqa: B018


# load


@pytest.mark.parametrize("name", ["nowhere", "many/train-abd", "empty", "many", "file.txt", "llama", "list", "broken"])
def test_load_refuses_what_eval_refuses(strangers, request, name):  # noqa: F811
    """With the same three lines."""
    with pytest.raises(RunError) as error:
        mmalign.load(name)
    result = request.getfixturevalue("mmalign")("eval", name, "--bench", "toy-pope")
    assert result.code == 2
    assert str(error.value) in result.err.replace("error: ", "")


def test_load_takes_a_stage_its_runs_and_a_path(tiny):
    place = trained(Path("runs"), tiny)
    models = [mmalign.load(spec) for spec in (place, str(place), "runs")]
    assert all(not model.training for model in models)
    weights = [next(model.adapter.parameters()) for model in models]
    assert all((weight == weights[0]).all() for weight in weights)


# preview and run


@pytest.fixture
def finished(tiny: Path) -> Path:
    """The tiny recipe with every stage done, as far as anybody who only looks can tell."""
    for node in graph.plan(compose.load(tiny), "runs"):
        task.save(node)
        metrics = SCORES if node.stage.kind == "evaluate" else {}
        task.finish(task.load(node.folder), {"metrics": metrics}, 0, 1)
    return tiny


def test_a_preview(tiny):
    plan = mmalign.preview(tiny, "stages.tune=~", "stages.score.reads.weights=align", runs="elsewhere")
    assert [(node.name, node.done) for node in plan] == [
        (name, False) for name in ("label", "align", "score", "report")
    ]
    assert len(plan) == 4
    assert not Path("elsewhere").exists()
    page = plan._repr_html_()
    assert re.findall(r"<th>(\w+)</th>", page) == ["stage", "kind", "state", "folder"]
    assert page.count("<tr>") == 1 + 4
    assert str(plan.stages[0].folder) in page


def test_a_preview_of_what_is_done(finished):
    plan = mmalign.preview(finished)
    assert all(node.done for node in plan)
    assert plan._repr_html_().count("<td>done</td>") == 5


def test_a_preview_of_a_study_names_the_arms(tiny):
    tiny.write_text(TINY + "matrix: {arms: {one: {}, other: {stages.align.objectives.sea: 2.0}}}\n")
    page = mmalign.preview(tiny)._repr_html_()
    assert "align (one 3)" in page
    assert "align (other 3)" in page


@pytest.mark.parametrize(
    ("word", "error", "says"),
    [("bach=8", RecipeError, "bach"), ("model.llm=nobody", mmalign.MMAlignError, "no llms card named 'nobody'"),
     ("stages.align.micro_batch=3", CheckError, "micro_batch")],
)  # fmt: skip
@pytest.mark.parametrize("call", [mmalign.preview, mmalign.run])
def test_what_is_wrong_is_said_before_anything_runs(tiny, call, word, error, says):
    with pytest.raises(error, match=says):
        call(tiny, word)
    assert not list(Path("runs").glob("*-*"))


def test_the_results_of_a_recipe(finished, monkeypatch):
    """All of it is done, so nothing runs."""
    results = mmalign.run(finished)
    assert results.scores == {"score": SCORES}
    assert list(results.folders) == ["label", "align", "tune", "score", "report"]
    assert all((folder / "stage.json").exists() for folder in results.folders.values())
    assert results.folder == Path("runs")
    assert results.report == results.folders["report"] / "report.html"
    rows = [
        {"evaluation": "score", "benchmark": "toy-perplexity", "metric": "perplexity", "value": 13.5},
        {"evaluation": "score", "benchmark": "toy-perplexity", "metric": "change", "value": -0.25},
    ]
    assert results.rows() == rows
    page = results._repr_html_()
    assert "<td>13.50</td>" in page
    assert "<td>-0.25</td>" in page
    monkeypatch.setitem(sys.modules, "pandas", type(sys)("pandas"))
    sys.modules["pandas"].DataFrame = lambda rows: ("frame", rows)
    assert results.to_pandas() == ("frame", rows)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(RunError, match="a DataFrame needs the package pandas"):
        results.to_pandas()


def test_a_recipe_without_report_and_scores(finished):
    results = recipes.results(mmalign.preview(finished).stages[:2])
    assert (results.scores, results.report, list(results.folders)) == ({}, None, ["label", "align"])
    assert results._repr_html_() == "<p>nothing</p>"


def test_a_page_escapes_what_it_is_given():
    results = recipes.Results({"<b>": {"a & b": {"<script>": 1.0}}}, {"x": Path("runs/x")}, None)
    assert "<td>&lt;b&gt;</td><td>a &amp; b</td><td>&lt;script&gt;</td>" in results._repr_html_()
    node = Node("<i>", compose.load("quickstart")[0].stages["label"], Recipe(name="a"), {}, {}, Path("runs/x"), [])
    page = recipes.Preview([node], ["<u>"])._repr_html_()
    assert "<td>&lt;i&gt;</td>" in page
    assert "<p>note: &lt;u&gt;</p>" in page


class Told:
    def __init__(self):
        self.said = []

    def begin(self, node):
        self.said.append(f"begin {node.name}")

    def event(self, node, event):
        assert isinstance(event, dict)

    def end(self, node, seconds):
        self.said.append(f"end {node.name}")


def test_what_is_not_done_runs_and_somebody_is_told(tiny):
    """One stage, for real."""
    rest, told = [f"stages.{name}=~" for name in ("align", "tune", "score", "report")], Told()
    results = mmalign.run(tiny, *rest, runs="elsewhere", show=told)
    assert json.loads((results.folders["label"] / "stage.json").read_text())["metrics"]["images"] == 48
    assert results.folder == Path("elsewhere")
    assert told.said == ["begin label", "end label"]
    assert mmalign.run(tiny, *rest, runs="elsewhere", show=told).folders == results.folders
    assert told.said == ["begin label", "end label"]  # it is done


def test_the_log_is_told_where_nobody_is(finished, caplog, monkeypatch):
    caplog.set_level("INFO")

    def run_nodes(nodes, launch, show, force):
        show.begin(nodes[0])
        show.event(nodes[0], {"say": "48 images"})
        show.event(nodes[0], {"done": 1})
        show.end(nodes[0], 2.4)

    monkeypatch.setattr(recipes, "run_nodes", run_nodes)
    mmalign.run(finished)
    assert [record.getMessage().split(": runs")[0] for record in caplog.records] == [
        "label begins", "label: 48 images", "label: done in 2 s"
    ]  # fmt: skip
