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
