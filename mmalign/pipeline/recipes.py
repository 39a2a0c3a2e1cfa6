"""A recipe planned and run from Python, as the command line does."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmalign.errors import StageError
from mmalign.io import files
from mmalign.io.visible import visible
from mmalign.pipeline import finished, following, leading, sample, standing
from mmalign.pipeline.launched import launched
from mmalign.pipeline.run import Launch, Show
from mmalign.pipeline.run import run as run_nodes
from mmalign.plan import gaps, graph, read
from mmalign.plan.cards import Registry
from mmalign.plan.check import check
from mmalign.plan.gaps import Gap
from mmalign.plan.graph import Node
from mmalign.plan.recipe import Recipe

log = logging.getLogger(__name__)


@dataclass
class Preview:
    """What a recipe will do. stages: in the order they run, `done` or not; notes: what a reader should see; gaps: what
    is not there yet."""

    stages: list[Node]
    notes: list[str]
    gaps: list[Gap] = field(default_factory=list)

    def __iter__(self) -> Any:
        return iter(self.stages)

    def __len__(self) -> int:
        return len(self.stages)

    def _repr_html_(self) -> str:
        rows = [
            {
                "stage": _name(n),
                "kind": n.stage.kind,
                "state": standing.told(n, standing.of(n.folder)),
                "folder": str(n.folder),
            }
            for n in self.stages
        ]
        return _table(rows) + "".join(f"<p>note: {_escaped(note)}</p>" for note in self.notes)


@dataclass
class Results:
    """What the stages of a recipe left.

    scores: {evaluation: {benchmark: {metric: value}}}; an evaluation is called as its stage, with arm and seed in a
    study. folders: {stage: its folder}, likewise. report: the page; None where the recipe has no report.
    """

    scores: dict[str, dict[str, dict[str, float]]]
    folders: dict[str, Path]
    report: Path | None

    @property
    def folder(self) -> Path:
        """The runs folder."""
        return next(iter(self.folders.values())).parent

    def rows(self) -> list[dict[str, Any]]:
        """One row a number: evaluation, benchmark, metric, value."""
        return [
            {"evaluation": name, "benchmark": bench, "metric": metric, "value": value}
            for name, benches in self.scores.items()
            for bench, metrics in benches.items()
            for metric, value in metrics.items()
        ]

    def to_pandas(self) -> Any:
        """The rows as a pandas.DataFrame; a RunError where pandas is not installed."""
        return files.data_frame(self.rows())

    def _repr_html_(self) -> str:
        return _table([{**row, "value": f"{row['value']:.2f}"} for row in self.rows()])


def preview(recipe: str | Path, *overrides: str, runs: str | Path = "runs", ahead: bool = False) -> Preview:
    """The stages of a recipe, checked; nothing is run and nothing heavy loaded.

    Of rows in files of this machine a few are rendered as training would, in a process of its own (3 s).

    recipe: a YAML file, or the name of a shipped recipe. overrides: `key=value`. ahead: what the data folder lacks is
    no error, and no row is looked at. Raises RecipeError, CardError, GraphError or CheckError for what is wrong, with
    the line it stands at, and GapsError for all that is missing.
    """
    variants = read.load(recipe, overrides)
    registry = Registry(variants[0].registry)
    notes = check(variants, registry, ahead)
    if (name := read.stands_for(recipe)) and name != str(recipe):
        notes = [f"no file {recipe} here: the shipped recipe {name}", *notes]
    stages = graph.plan(variants, Path(runs), registry)
    notes += [note for node in stages for note in graph.unseen(node)]
    lacking = [] if all(node.done for node in stages) else gaps.of(variants, registry)
    if not ahead:
        refuse(lacking, variants[0])
    return Preview(stages, notes if ahead else [*notes, *sample.look(stages)], lacking)


def refuse(lacking: Sequence[Gap], recipe: Recipe) -> None:
    """Raise a GapsError where something is missing that no run can do without."""
    if any(gap.blocks for gap in lacking):
        raise gaps.GapsError(lacking, gaps.asked([recipe]))


def reached(plan: Preview) -> Preview:
    """A plan that is about to run; a GapsError where weights are to be fetched and the hub does not answer (3 s)."""
    if plan.stages:
        refuse(gaps.unreachable(plan.gaps), plan.stages[0].recipe)
    return plan


def run(
    recipe: str | Path,
    *overrides: str,
    runs: str | Path = "runs",
    devices: int = 1,
    hosts: str | Path | None = None,
    force: Sequence[str] = (),
    show: Show | None = None,
) -> Results:
    """Run every stage of a recipe that is not done: `mmalign run` from Python, with the same arguments.

    devices: processes on this machine. hosts: a DeepSpeed host file. In a script that srun or torchrun started several
    times all take part in each stage, and each gets the results. force: stages to run again. show: is told of
    progress; None: the log is. Raises what `preview` raises, and StageError where a stage fails.
    """
    own, file = launched(), Path(hosts) if hosts else None
    if own and own.number:  # the first runs the stages
        if code := following.follow(own, Path(runs)):
            raise StageError(
                "the first process did not come to the end", at=str(runs), fix=f"exit code {code}: see its log"
            )
        return results(preview(recipe, *overrides, runs=runs).stages)
    with leading.leading(own, Path(runs), devices, file) as leader:
        plan = reached(preview(recipe, *overrides, runs=runs))
        for note in plan.notes:
            log.warning("%s", visible(note))
        run_nodes(plan.stages, Launch(devices, file, leader), show or _Log(), force)
    return results(plan.stages)


def results(nodes: Sequence[Node]) -> Results:
    """What finished stages left."""
    named = {_name(node): node for node in nodes}
    scores = {name: finished.scores(node.folder) for name, node in named.items() if node.stage.kind == "evaluate"}
    reports = [node.folder / "report.html" for node in nodes if node.stage.kind == "report"]
    return Results(scores, {name: node.folder for name, node in named.items()}, reports[-1] if reports else None)


class _Log:
    """Tells the log how stages fare."""

    def begin(self, node: Node) -> None:
        log.info("%s begins: %s, log %s", visible(_name(node)), node.folder, node.folder / "log.txt")

    def event(self, node: Node, event: dict[str, Any]) -> None:
        if "say" in event:
            log.info("%s: %s", visible(_name(node)), visible(event["say"]))

    def end(self, node: Node, seconds: float) -> None:
        log.info("%s: done in %.0f s", visible(_name(node)), seconds)


def _name(node: Node) -> str:
    """A stage's name, with the arms it is of in a study."""
    arms = ", ".join(filter(None, node.arms))
    return f"{node.name} ({arms})" if arms and node.stage.kind != "report" else node.name


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as an HTML table, for a notebook."""
    if not rows:
        return "<p>nothing</p>"
    head = "".join(f"<th>{_escaped(key)}</th>" for key in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{_escaped(cell)}</td>" for cell in row.values()) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _escaped(value: Any) -> str:
    from html import escape

    return escape(str(value))
