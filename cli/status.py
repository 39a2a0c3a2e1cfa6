"""`mmalign status` and `mmalign watch`: what ran, runs, failed and waits, as a table a run, once or until all ended."""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from mmalign.errors import RunError
from mmalign.io.times import lasting
from mmalign.io.visible import one_line, visible
from mmalign.pipeline import ranks, stalled, standing, status
from mmalign.pipeline.status import Row, Run

from . import live, show

EVERY = 1.0  # seconds between two looks
STYLES = {"done": "green", "failed": "red", "damaged": "red", "running": "bold", "waits": "dim", "not run": "dim"}


def show_runs(runs: Path, as_json: bool) -> None:
    """Print how the stages of a folder of runs stand."""
    all_ = status.of(runs)
    if as_json:
        from . import dump

        dump({"folder": str(runs), "time": round(time.time(), 3), "runs": [plain(run) for run in all_]})
        return
    for part in parts(runs, all_):
        show.out.print(part)


def parts(runs: Path, all_: Sequence[Run]) -> Iterator[Text | Table]:
    """What is shown of all runs, from above to below."""
    if not all_:
        yield Text(visible(f"nothing ran in {runs}"))
    for number, run in enumerate(all_):
        yield Text(visible("\n" * bool(number) + heading(run)), style="bold")
        yield _table(run)
        for row in run.rows:
            if failed := standing.failure(row.standing, row.folder):
                yield Text(visible(show.failure(row.title, failed)), style="red")
            if row.metrics:
                yield Text(visible(f"{row.title}: {live.numbers(row.metrics)}"))


def watch(runs: Path) -> None:
    """Show the same on a terminal until nothing runs any more; a RunError where there is no terminal."""
    from rich.console import Group
    from rich.live import Live

    if not sys.stdout.isatty():
        raise RunError("watch draws on a terminal, and here is none", at="stdout", fix=f"mmalign status {runs}")
    with Live(console=show.out, auto_refresh=False) as screen:
        while True:
            all_ = status.of(runs)
            screen.update(Group(*parts(runs, all_)), refresh=True)
            if not any(run.live or row.state in status.WORKS for run in all_ for row in run.rows):
                return
            time.sleep(EVERY)


def heading(run: Run) -> str:
    """A run in a line."""
    recipe = one_line(run.recipe) or "of no recipe"
    told = f"{run.done} of {len(run.rows)} stages done"
    if run.began is not None:
        when = show.clock(run.began)
        told = f"{run.owner} since {when}, {told}, {left(run)}" if run.live else f"began at {when}, {told}"
    return f"{recipe}   {run.state}: {told}"


def left(run: Run) -> str:
    """The time left of all its stages, as far as it can be told."""
    unknown = ", ".join(dict.fromkeys(map(one_line, run.unknown)))
    if run.left is None:
        return "time left not known yet"
    told = f"{lasting(run.left)} left"
    return f"over {told} (of {unknown} not known yet)" if unknown else f"about {told}"


def _table(run: Run) -> Table:
    stages = show.table("", "stage", "how far", "time", "folder")
    for row in run.rows:
        state = Text(one_line(row.state), style=STYLES.get(row.state, ""))
        stages.add_row(state, one_line(row.title), _far(row), spent(row), str(row.folder))
    return stages


def _far(row: Row) -> str:
    return "; ".join(filter(None, [far(row), remark(row)]))


def far(row: Row) -> str:
    """How much of its work a stage has done."""
    return live.far(row.progress.done, row.progress.total, row.progress.unit) if row.progress else ""


def remark(row: Row) -> str:
    """What else there is to say of a stage but a failure, which has lines of its own."""
    told = [] if row.state in ("done", "failed", "damaged") else [one_line(row.standing.why)]
    if row.silent is not None and row.silent > stalled.SILENT:
        where = ranks.standing(row.folder)
        told.append(f"nothing heard of it for {lasting(row.silent)}{where and f' ({where})'}")
    if row.spikes:
        last, many = row.spikes[-1], len(row.spikes)
        told.append(f"{many} spike{'s' * (many > 1)}, the last of the {one_line(last['what'])} by step {last['step']}")
    return "; ".join(filter(None, told))


def spent(row: Row) -> str:
    """The time that a stage took, or has left."""
    if row.seconds is not None:
        return lasting(row.seconds)
    return f"{lasting(row.left)} left" if row.left is not None else ""


def plain(run: Run) -> dict[str, Any]:
    """A run in plain values."""
    return {
        "recipe": run.recipe,
        "state": run.state,
        "owner": run.owner or None,
        "began": run.began,
        "left": run.left,
        "unknown": run.unknown,
        "stages": [_row(row) for row in run.rows],
    }


def _row(row: Row) -> dict[str, Any]:
    progress = row.progress
    return {
        "state": row.state,
        "why": row.standing.why,
        "stage": row.name,
        "kind": row.kind,
        "arms": row.arms,
        "folder": str(row.folder),
        "log": str(row.log) if row.log else None,
        "owner": row.standing.owner or None,
        "done": progress and progress.done,
        "total": progress and progress.total,
        "unit": progress and progress.unit,
        "metrics": row.metrics,
        "seconds": row.seconds,
        "left": row.left,
        "silent": row.silent,
        "spikes": len(row.spikes),
        "failed": standing.failure(row.standing, row.folder),
    }
