"""`compare`: finished evaluations side by side; no model is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.benchmarks import Benchmark, Score
from mmalign.errors import MMAlignError, RunError
from mmalign.io import files
from mmalign.pipeline import existing, task
from mmalign.plan.recipe import Evaluate

from .scores import made

if TYPE_CHECKING:
    from mmalign.benchmarks.compare import Against, Row, Run


def compare(places: Sequence[str], out: Path, as_json: bool) -> None:
    """Evaluations side by side; the page shows questions and pictures where their files are still there."""
    from mmalign.benchmarks import compare as comparing

    from . import dump, show

    folders = [evaluation(place) for place in places]
    names = [place if places.count(place) == 1 else f"{place} {n}" for n, place in enumerate(places, 1)]
    runs = [_run(name, folder) for name, folder in zip(names, folders, strict=True)]
    rows = comparing.compare(runs)
    benches, missing = _benches(folders[0], [row.bench for row in rows if any(row.against)])
    page = comparing.page(runs, rows, benches)
    files.write(out, page)
    notes = [*(note for row in rows for note in row.notes), *missing]
    if as_json:
        dump({"runs": [{"name": run.name, "folder": str(folder)} for run, folder in zip(runs, folders, strict=True)],
              "rows": [_told(row) for row in rows], "notes": notes, "page": str(out)})  # fmt: skip
        return
    _side_by_side(runs, rows)
    show.out.print(f"page: {out}")
    show.tell(notes)


def evaluation(place: str) -> Path:
    """The folder of a finished evaluation: itself, the newest of a trained model's, or the newest below a folder."""
    folder = Path(place)
    if not folder.is_dir():
        raise RunError(f"no such folder: {place}", fix="the folder of an evaluation, runs/evaluate-...")
    if (folder / "stage.yaml").exists():
        given = task.load(folder.resolve())
        if isinstance(given.stage, Evaluate):
            if not (folder / "stage.json").exists():
                raise RunError(f"{place} is not finished", at=place, fix="the same command that began it goes on")
            return folder
        own = [one for one in _evaluations(folder.resolve().parent) if folder.resolve() in _read_by(one)]
    else:
        own = _evaluations(folder)
    if not own:
        raise RunError(
            f"there is no finished evaluation of {place}", at=place, fix=f"mmalign eval {place} --bench NAME"
        )
    return own[-1]


def _evaluations(runs: Path) -> list[Path]:
    """The finished evaluations in a folder of runs, the newest last; those that --force set aside have a dot."""
    places = [place for place in runs.glob("evaluate-*/stage.json") if "." not in place.parent.name]
    return [place.parent for place in sorted(places, key=lambda place: place.stat().st_mtime)]


def _read_by(folder: Path) -> list[Path]:
    return [read.resolve() for slot, read in task.load(folder.resolve()).reads if slot == "weights"]


def _run(name: str, folder: Path) -> "Run":
    from mmalign.benchmarks.answers import rows
    from mmalign.benchmarks.compare import Run

    stage = task.load(folder.resolve()).stage
    assert isinstance(stage, Evaluate)
    scores = {bench: Score(**files.read_json(folder / f"{bench}.json")) for bench in existing.scores(folder)}
    stored = {bench: folder / f"{bench}.jsonl" for bench in scores if (folder / f"{bench}.jsonl").exists()}
    answers = {bench: {row.id: row.text for row in rows(str(place))} for bench, place in stored.items()}
    return Run(name, scores, answers, stage.protocol)


def _benches(folder: Path, names: Sequence[str]) -> tuple[dict[str, Benchmark], list[str]]:
    """The benchmarks whose questions can still be read, and a note on each that cannot."""
    cards, found, missing = task.load(folder.resolve()).cards, {}, []
    for name in names:
        try:
            found[name] = made(cards[f"bench.{name}"])
            found[name].questions()
        except (MMAlignError, KeyError) as err:
            found.pop(name, None)
            what = err.what if isinstance(err, MMAlignError) else "it is in one run only"
            missing.append(f"{name}: its questions cannot be shown: {what}")
    return found, missing


def _told(row: "Row") -> dict[str, Any]:
    against = [None if one is None else _over(one) for one in row.against]
    return {"bench": row.bench, "metric": row.metric, "values": row.values, "against": against}


def _over(one: "Against") -> dict[str, Any]:
    gap = one.difference._asdict() if one.difference else None
    return {"questions": one.questions, "difference": gap, "better": one.better, "worse": one.worse}


def _side_by_side(runs: Sequence["Run"], rows: Sequence["Row"]) -> None:
    from . import show

    shown = show.table("benchmark", "metric", *(run.name for run in runs))
    for row in rows:
        shown.add_row(row.bench, row.metric, *("" if value is None else f"{value:.4f}" for value in row.values))
    show.out.print(shown)
    over = show.table("benchmark", "over", "questions", "difference", "95 % interval", "p", "better", "worse")
    for row in rows:
        for run, one in zip(runs[1:], row.against, strict=True):
            if one and (gap := one.difference):
                cells = [f"{gap.mean:+.4f}", f"{gap.low:+.4f} to {gap.high:+.4f}", f"{gap.p:.4f}"]
                flipped = [str(len(one.better)), str(len(one.worse))]
                over.add_row(row.bench, f"{run.name} over {runs[0].name}", str(one.questions), *cells, *flipped)
    show.out.print(over)
