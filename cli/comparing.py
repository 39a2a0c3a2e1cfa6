"""`compare`: finished evaluations side by side; no model is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.benchmarks import Benchmark
from mmalign.errors import MMAlignError, RunError
from mmalign.io import files
from mmalign.pipeline import finished, task
from mmalign.plan.recipe import Evaluate
from mmalign.plan.trust import RefusedError

from .scores import build_benchmark

if TYPE_CHECKING:
    from mmalign.benchmarks.compare import ComparisonRow, PairedComparison, Run


def compare(places: Sequence[str], out: Path, as_json: bool) -> None:
    """Evaluations side by side; the page shows questions and pictures where their files are still there."""
    from mmalign.benchmarks import compare as comparing

    from . import dump, show

    folders = [evaluation(place) for place in places]
    runs = [_run(name, folder) for name, folder in zip(_names(folders), folders, strict=True)]
    rows = comparing.compare(runs)
    benches, missing = _benches(folders[0], [row.bench for row in rows if any(row.against)])
    page = comparing.page(runs, rows, benches)
    files.write(out, page)
    notes = [*(note for row in rows for note in row.notes), *missing]
    if as_json:
        dump({"runs": [{"name": run.name, "folder": str(folder)} for run, folder in zip(runs, folders, strict=True)],
              "rows": [_row_json(row) for row in rows], "notes": notes, "page": str(out)})  # fmt: skip
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
        if isinstance(task.load(folder.resolve()).stage, Evaluate):
            if not (folder / "stage.json").exists():
                raise RunError(f"{place} is not finished", at=place, fix="the same command that began it goes on")
            return folder
        evaluations = [one for one in _evaluations(folder.resolve().parent) if folder.resolve() in _models_of(one)]
    else:
        evaluations = _evaluations(folder)
    if not evaluations:
        raise RunError(
            f"there is no finished evaluation of {place}", at=place, fix=f"mmalign eval {place} --bench NAME"
        )
    return evaluations[-1]


def _evaluations(runs: Path) -> list[Path]:
    """The finished evaluations in a folder of runs, the newest last; those that --force set aside have a dot."""
    finished = [path for path in runs.glob("evaluate-*/stage.json") if "." not in path.parent.name]
    return [path.parent for path in sorted(finished, key=lambda path: path.stat().st_mtime)]


def _models_of(folder: Path) -> list[Path]:
    """The folders of the trained models that an evaluation is of."""
    return [read.resolve() for slot, read in task.load(folder.resolve()).reads if slot == "weights"]


def _names(folders: Sequence[Path]) -> list[str]:
    """Evaluations by recipe, arm and seed; by their folders, too, where several are of the same."""
    names = [_name(folder) for folder in folders]
    names = [
        name if names.count(name) == 1 else f"{name} ({folder.name})"
        for name, folder in zip(names, folders, strict=True)
    ]
    return [name if names.count(name) == 1 else f"{name} {number}" for number, name in enumerate(names, 1)]


def _name(folder: Path) -> str:
    stored = task.load(folder.resolve())
    of = [stored, *(task.load(place) for place in _models_of(folder) if not any(stored.arms))]
    arms = next((arms for one in of if (arms := list(filter(None, one.arms)))), [])
    return f"{stored.recipe} {' / '.join(arms)}" if arms else f"{stored.recipe}, seed {stored.seed}"


def _run(name: str, folder: Path) -> "Run":
    from mmalign.benchmarks.answers import answer_rows
    from mmalign.benchmarks.asked import Asked
    from mmalign.benchmarks.compare import Run

    stage = task.load(folder.resolve()).stage
    assert isinstance(stage, Evaluate)
    scores = {bench: finished.score(folder, bench) for bench in finished.scores(folder)}
    stored = {bench: folder / f"{bench}.jsonl" for bench in scores if (folder / f"{bench}.jsonl").exists()}
    answers = {bench: {row.id: row.text for row in answer_rows(str(path))} for bench, path in stored.items()}
    records = {bench: folder / f"{bench}.asked.json" for bench in scores}
    asked = {bench: Asked.read(place, finished.EVALUATION) for bench, place in records.items() if place.exists()}
    return Run(name, scores, answers, stage.protocol, asked)


def _benches(folder: Path, names: Sequence[str]) -> tuple[dict[str, Benchmark], list[str]]:
    """The benchmarks whose questions can still be read, and a note on each that cannot."""
    cards, benches, notes = task.load(folder.resolve()).cards, {}, []
    for name in names:
        try:
            benches[name] = build_benchmark(cards[f"bench.{name}"])
            benches[name].questions()
        except RefusedError:  # a folder that would have us run something
            raise
        except (MMAlignError, KeyError) as err:
            benches.pop(name, None)
            what = err.what if isinstance(err, MMAlignError) else "it is in one run only"
            notes.append(f"{name}: its questions cannot be shown: {what}")
    return benches, notes


def _row_json(row: "ComparisonRow") -> dict[str, Any]:
    against = [None if pairs is None else _pairs_json(pairs) for pairs in row.against]
    return {"bench": row.bench, "metric": row.metric, "values": row.values, "against": against}


def _pairs_json(pairs: "PairedComparison") -> dict[str, Any]:
    difference = pairs.difference._asdict() if pairs.difference else None
    return {
        "questions": pairs.questions,
        "values": pairs.values,
        "difference": difference,
        "cluster": pairs.cluster,
        "clusters": pairs.clusters,
        "better": pairs.better,
        "worse": pairs.worse,
    }


def _side_by_side(runs: Sequence["Run"], rows: Sequence["ComparisonRow"]) -> None:
    from . import show

    headlines = show.table("benchmark", "metric", *(run.name for run in runs))
    for row in rows:
        headlines.add_row(row.bench, row.metric, *("" if value is None else f"{value:.4f}" for value in row.values))
    show.out.print(headlines)
    first = runs[0]
    columns = (
        "benchmark",
        "run",
        "questions",
        first.name,
        "run's",
        "difference",
        "95 % interval",
        "p",
        "by",
        "better",
        "worse",
    )
    differences = show.table(*columns)
    for row in rows:
        for run, pairs in zip(runs[1:], row.against, strict=True):
            if pairs and pairs.values and (gap := pairs.difference):
                cells = [*(f"{value:.4f}" for value in pairs.values), f"{gap.mean:+.4f}"]
                cells += [f"{gap.low:+.4f} to {gap.high:+.4f}", f"{gap.p:.4f}", f"{pairs.cluster} ({pairs.clusters})"]
                flips = [str(len(pairs.better)), str(len(pairs.worse))]
                differences.add_row(row.bench, run.name, str(pairs.questions), *cells, *flips)
    show.out.print(f"over {first.name}, on the questions both were asked:")
    show.out.print(differences)
