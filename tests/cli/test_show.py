"""What `run` prints at its end where a recipe has no report."""

from mmalign.cli import show

from mmalign.pipeline import task
from mmalign.plan import graph
from mmalign.plan import read as compose
from tests.conftest import TINY


def test_every_evaluation_of_a_study_is_named(here, capsys):
    (here / "x.yaml").write_text(TINY + "matrix: {arms: {a: {}, b: {stages.tune.batch: 16}}}\n")
    nodes = graph.plan(compose.load("x.yaml", ["stages.report=~"]))
    for number, node in enumerate(node for node in nodes if node.name == "score"):
        task.save(node)
        task.finish(task.load(node.folder), {"metrics": {"toy-pope": {"accuracy": number}}}, 0, 1)
    show.results(nodes)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    table = "benchmark metric value"
    assert lines[:-1] == [
        "", "score (a 3)", table, "toy-pope accuracy 0.00",
        "", "score (b 3)", table, "toy-pope accuracy 1.00",
    ]  # fmt: skip


def test_what_is_measured_by_layer_is_told_in_one_line(here, capsys):
    (here / "x.yaml").write_text(TINY)
    nodes = graph.plan(compose.load("x.yaml", ["stages.report=~"]))
    (node,) = (node for node in nodes if node.name == "score")
    metrics = {"object": 1.0} | {f"{name}_layer_{n}": 2.0 for n in range(1, 31) for name in ("object", "ceiling")}
    task.save(node)
    task.finish(task.load(node.folder), {"metrics": {"toy-alignment": metrics, "toy-pope": {"f1": 3}}}, 0, 1)
    show.scores(node.folder, False)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "benchmark metric value", "toy-alignment object 1.00", "toy-pope f1 3.00",
        f"object, ceiling by layer of toy-alignment: in {node.folder / 'stage.json'}",
    ]  # fmt: skip
    show.scores(node.folder, True)
    assert '"object_layer_30": 2.0' in capsys.readouterr().out
