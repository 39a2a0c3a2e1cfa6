"""What the verbs print: plans, scores, reports."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from mmalign.errors import RunError
from mmalign.io.visible import one_line
from mmalign.pipeline import finished, rates, recipes, standing, tracking
from mmalign.pipeline.recipes import Preview, preview
from mmalign.plan import estimate, gaps, slow, trackers, work
from mmalign.plan.graph import Node
from mmalign.plan.recipe import Evaluate, Label, Language, Report, Stage, Train

from . import live
from .screen import Screen, Whole

WIDE = None if sys.stdout.isatty() else 1000  # columns; in a file or a pipe no cell is folded

out = Screen(highlight=False, soft_wrap=True, markup=False, width=WIDE)  # a path may hold what looks like markup
err = Screen(stderr=True, highlight=False, soft_wrap=True, markup=False, width=None if sys.stderr.isatty() else 1000)


def planned(recipe: str, overrides: Sequence[str], runs: Path, ahead: bool = False, as_json: bool = False) -> Preview:
    """The plan of a recipe, checked; what is missing is told before the error. ahead: before its data is there."""
    from . import missing

    with missing.told(" ".join([recipe, *overrides]), as_json):
        return preview(recipe, *overrides, runs=runs, ahead=ahead)


def checked(recipe: str, overrides: Sequence[str], as_json: bool) -> None:
    """Say what is missing, and that nothing is wrong."""
    from . import dump, missing

    plan = planned(recipe, overrides, Path("runs"), as_json=as_json)
    name, stages = plan.stages[0].recipe.name, len(plan.stages)
    if as_json:
        dump({"recipe": name, "stages": stages, "notes": plan.notes, "gaps": gaps.as_json(plan.gaps)})
        return
    tell(plan.notes)
    missing.tell(plan.gaps, " ".join([recipe, *overrides]))
    out.print(f"{name}: {stages} stages, nothing wrong")


def table(*columns: str) -> Table:
    """A table without lines whose cells fold."""
    grid = Whole(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        grid.add_column(column, overflow="fold")
    return grid


def tell(notes: Sequence[str]) -> None:
    """Notes, on stderr."""
    for note in notes:
        err.print(f"note: {note}", style="yellow")


def plan(whole: Preview, devices: int, as_json: bool) -> None:
    """The stages of a recipe as a table, with what they will take on so many devices, and what is missing."""
    from . import missing

    nodes, notes = whole.stages, [*whole.notes, *slow.notes(whole.stages)]
    rows = [_row(node, devices) for node in nodes]
    if as_json:
        from . import dump

        dump(
            {"recipe": nodes[0].recipe.name, "devices": devices, "stages": rows, "notes": notes}
            | {"gaps": gaps.as_json(whole.gaps)}
        )
        return
    recipe = nodes[0].recipe
    parts = [p.card for p in (recipe.model.vision, recipe.model.adapter, recipe.model.llm, recipe.model.vlm) if p]
    out.print(f"{recipe.name}   {' + '.join(parts)}\n", style="bold")
    stages = table("", "stage", "kind", "what", "reads", "folder")
    for row in rows:
        state = Text(one_line(row["state"]), style="green" if row["state"] == "done" else "")
        stages.add_row(state, _with_arm(row), row["kind"], row["what"], ", ".join(row["reads"]) or "-", row["folder"])
    out.print(stages)
    _estimates(nodes, devices)
    for row in rows:
        if row["failed"]:
            out.print(failure(_with_arm(row), row["failed"]), style="red")
    missing.tell(whole.gaps, gaps.asked([recipe]), out)
    for note in notes:
        out.print(f"note: {note}")


def failure(name: str, failed: Mapping[str, Any]) -> str:
    """What a failed stage left word of, in lines: its cause, the place, what to try, and its log."""
    when = "" if failed["time"] is None else f" at {clock(failed['time'])}"
    lines = [f"{name} failed{when}: {failed['what']}"]
    for key, word in (("at", "at "), ("fix", "try"), ("log", "log")):
        if failed[key] and (key != "at" or failed["at"] != failed["log"]):
            lines.append(f"  {word}  {failed[key]}")
    return "\n".join(lines)


def clock(seconds: float) -> str:
    """A moment on this machine's clock; `?` for none, out of a damaged file."""
    if not 0 <= seconds < 1e11:
        return "?"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _estimates(nodes: Sequence[Node], devices: int) -> None:
    """What the stages will take; once for arms that take the same."""
    names_of: dict[tuple[str, ...], list[str]] = {}
    for node in nodes:
        if (costs := estimate.of(node, devices)) and (lines := estimate.lines(costs)):
            if flops := work.flops(node, costs):
                lines.append(rates.line(flops, _seconds(node, flops, devices)))
            names_of.setdefault(tuple(lines), []).append(node.name)
    for text, names in names_of.items():
        out.print(f"\n{', '.join(dict.fromkeys(names))}", style="bold")
        for each in text:
            out.print(f"  {each}")
    if names_of:
        out.print()


def _row(node: Node, devices: int) -> dict[str, Any]:
    stands = None if node.done else standing.of(node.folder)
    return {
        "state": standing.told(node, stands),
        "failed": stands and standing.failure(stands, node.folder),
        "stage": node.name,
        "kind": node.stage.kind,
        "what": what(node.stage),
        "reads": list(dict.fromkeys(other.name for _, other in node.reads)),
        "folder": str(node.folder),
        "arms": _arms(node),
        "estimate": _as_json(node, devices),
    }


def _as_json(node: Node, devices: int) -> dict[str, Any] | None:
    """A stage's estimate, with its operations and the seconds they take where."""
    if (costs := estimate.of(node, devices)) is None:
        return None
    flops = work.flops(node, costs)
    took = {} if flops is None else {"seconds": _seconds(node, flops, devices)}
    return {**(estimate.as_json(costs) or {}), "flops": flops, **took}


def _seconds(node: Node, flops: float, devices: int) -> dict[str, float]:
    return rates.seconds(flops, devices, getattr(node.stage, "precision", "bf16"))


def _arms(node: Node) -> list[str]:
    """`arm seed` of every variant that uses a stage; none without a matrix."""
    return node.arms if any(node.arms) else []


def _with_arm(row: Mapping[str, Any]) -> str:
    """A stage of a study with the arm it is of, or how many share it."""
    arms = row["arms"]
    return f"{row['stage']} ({arms[0] if len(arms) == 1 else f'{len(arms)} arms'})" if arms else row["stage"]


def what(stage: Stage) -> str:
    """A stage in one line."""
    if isinstance(stage, Label):
        return f"{stage.source.card} on {stage.data.card}, {stage.keep} words a patch"
    if isinstance(stage, Train):
        losses = " + ".join(name if o.weight == 1 else f"{o.weight:g} {name}" for name, o in stage.objectives.items())
        return f"{' + '.join(stage.trains)} on {stage.data.card}; {losses}; lr {stage.optim.lr:g}, batch {stage.batch}"
    if isinstance(stage, Evaluate):
        return ", ".join(part.card for part in stage.bench)
    if isinstance(stage, Report):
        return "a table and a page"
    if isinstance(stage, Language):
        return f"{stage.data.card}, from {stage.from_}"
    return str(getattr(getattr(stage, "data", None), "card", ""))


def results(nodes: Sequence[Node], as_json: bool = False) -> None:
    """The tables of a finished run: of its reports, else of its evaluations."""
    if as_json:
        from . import dump

        left = recipes.results(nodes)
        stages = [
            {"stage": node.name, "kind": node.stage.kind, "arms": _arms(node), "folder": str(node.folder)}
            for node in nodes
        ]
        page = str(left.report) if left.report else None
        dump({"recipe": nodes[0].recipe.name, "stages": stages, "scores": left.scores, "report": page})
        return
    reports = [node for node in nodes if isinstance(node.stage, Report)]
    for node in reports:
        report(node.folder, node.folder.parent, False)
    evaluations = [node for node in nodes if isinstance(node.stage, Evaluate) and not reports]
    for node in evaluations:
        if len(evaluations) > 1:
            out.print(f"\n{live.name(node)}", style="bold")
        scores(node.folder, False)
    for node in (node for node in nodes if (node.folder / "stage.json").exists()):
        for line in finished.account(node.folder):
            out.print(f"{live.name(node)}: {line}", markup=False)
    out.print(f"done: {len(nodes)} stages in {nodes[0].folder.parent}")


def scores(place: Path, as_json: bool) -> None:
    """{benchmark: its metrics} of a finished evaluation as a table."""
    metrics_of = finished.scores(place)
    if as_json:
        from . import dump

        dump(metrics_of)
        return
    metrics_table = table("benchmark", "metric", "value")
    for bench, metrics in metrics_of.items():
        for metric, value in metrics.items():
            if not finished.layer_of(metric):
                metrics_table.add_row(bench, metric, f"{value:.2f}")
    out.print(metrics_table)
    _by_layer([(bench, metric) for bench in metrics_of for metric in metrics_of[bench]], f"in {place / 'stage.json'}")


def _by_layer(metrics: Sequence[tuple[str, str]], where: str) -> None:
    """A line for each benchmark with numbers of every layer, which no table lists, on where they stand."""
    names_of: dict[str, dict[str, None]] = {}
    for bench, metric in metrics:
        if layered := finished.layer_of(metric):
            names_of.setdefault(bench, {})[layered[0]] = None
    for bench, names in names_of.items():
        out.print(f"{', '.join(names)} by layer of {bench}: {where}")


def report(place: Path | None, runs: Path, as_json: bool) -> None:
    """The table of a report stage's folder, by default the newest in a folder of runs, and where its files are."""
    folder = place or _newest(runs)
    content = finished.report(folder)
    if as_json:
        from . import dump

        dump(content)  # with all that stands beside the cells
        return
    cells = content["cells"]
    study = any(len(cell["values"]) > 1 or cell["arm"] != cells[0]["arm"] for cell in cells)
    metrics_table = table("benchmark", "metric", *(["arm", "mean ± sd", "difference"] if study else ["value"]))
    for cell in cells:
        if not finished.layer_of(cell["metric"]):
            values = _study_values(cell) if study else [f"{cell['mean']:.2f}"]
            metrics_table.add_row(cell["bench"], cell["metric"], *values, style="bold" if cell["headline"] else None)
    out.print(metrics_table)
    _by_layer([(cell["bench"], cell["metric"]) for cell in cells], "plotted on the page, in full in report.json")
    out.print(f"page: {folder / 'report.html'}")
    if kept := [str(place) for name in ("report.csv", "report.tex") if (place := folder / name).exists()]:
        out.print(f"tables: {', '.join(kept)}")
    if (folder / "figures").exists():
        out.print(f"figures: {folder / 'figures'}")


def _study_values(cell: finished.Row) -> list[str]:
    """The arm, its mean and spread over seeds, its paired difference to the first arm with a 95 % interval."""
    spread = "" if cell["spread"] is None else f" ± {cell['spread']:.2f}"
    gap = "" if cell["difference"] is None else f"{cell['difference']:+.2f}"
    interval = f" [{cell['interval'][0]:+.2f}, {cell['interval'][1]:+.2f}]" if cell["interval"] else ""
    return [cell["arm"], f"{cell['mean']:.2f}{spread}", gap + interval]


def folder_of(target: Path | None) -> None:
    """Refuse a file that is to be written into no folder, before any work."""
    if target and not target.absolute().parent.is_dir():
        raise RunError(f"no folder {target.parent}", at=str(target), fix="--out in a folder that is there")


def tracked(log_to: str | None) -> list[str]:
    """`--log-to` as the setting of a recipe that it is."""
    return [] if log_to is None else [f"log_to=[{','.join(trackers.listed(log_to))}]"]


def one(places: Sequence[Path] | None) -> Path | None:
    """The only one of some folders; None where there is none."""
    if places and len(places) > 1:
        raise RunError(f"{len(places)} folders, and one report is printed", at=str(places[1]), fix="one, or --log-to")
    return places[0] if places else None


def track(places: Sequence[Path], log_to: str, as_json: bool) -> None:
    """Send the numbers of finished stages to trackers, and say of which."""
    names = trackers.listed(log_to)
    for absent in trackers.absent(names, trackers.OPTION):
        raise absent
    folders = tracking.afterwards(places, names)
    if as_json:
        from . import dump

        dump([{"folder": str(folder), "trackers": names} for folder in folders])
        return
    for folder in folders:
        out.print(f"{folder}: its numbers are in {', '.join(names)}")


def _newest(runs: Path) -> Path:
    finished = (path for path in runs.glob("report-*/stage.json") if "." not in path.parent.name)
    newest = max(finished, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise RunError(f"no report under {runs}", fix="mmalign run a recipe with a stage of kind report")
    return newest.parent
