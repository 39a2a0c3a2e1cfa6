"""Runs side by side: headlines, what one has over the first on the same questions, and which questions flipped."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files as resources
from typing import TYPE_CHECKING, Any

from mmalign.benchmarks import Benchmark, Question, Score
from mmalign.benchmarks.bootstrap import Difference, difference
from mmalign.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 12  # questions shown of each benchmark and run, in each direction
SIDE = 336  # pixels of a picture's longer side


@dataclass
class Run:
    """One evaluation: what it scored and, for each benchmark, {question id: answer}."""

    name: str
    scores: Mapping[str, Score]
    answers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    protocol: str = "official"


@dataclass
class Against:
    """What a run has over the first one, paired by question; the unit is that of the benchmark's items."""

    questions: int  # that both answered
    difference: Difference | None  # None: no question is in both
    better: list[str]  # ids whose value rose, the largest step first
    worse: list[str]


@dataclass
class Row:
    bench: str
    metric: str  # the headline
    values: list[float | None]  # of each run; None: it has no such score
    against: list[Against | None]  # of each run but the first
    notes: list[str] = field(default_factory=list)


def compare(runs: Sequence[Run]) -> list[Row]:
    """A row for each benchmark that some run has, in the order of the first that has it."""
    if len(runs) < 2:
        raise DataError(f"{len(runs)} run is nothing to compare", fix="mmalign compare RUN RUN")
    names = dict.fromkeys(name for run in runs for name in run.scores)
    return [_row(name, runs) for name in names]


def _row(name: str, runs: Sequence[Run]) -> Row:
    metric = next(run.scores[name].headline for run in runs if name in run.scores)
    values = [run.scores[name].metrics.get(metric) if name in run.scores else None for run in runs]
    items = [run.scores[name].items if name in run.scores else {} for run in runs]
    row = Row(name, metric, values, [_against(items[0], other) for other in items[1:]])
    for run, other in zip(runs[1:], items[1:], strict=True):
        if items[0] and other and (odd := len(items[0].keys() ^ other.keys())):
            row.notes.append(f"{name}: {odd} questions are in {runs[0].name} or {run.name} only, and left out")
        if name in run.scores and name in runs[0].scores and run.protocol != runs[0].protocol:
            row.notes.append(f"{name}: {runs[0].name} is scored as {runs[0].protocol}, {run.name} as {run.protocol}")
    return row


def _against(first: Mapping[str, float], other: Mapping[str, float]) -> Against | None:
    """None where one of them has no values of single questions."""
    if not first or not other:
        return None
    steps = {name: other[name] - value for name, value in first.items() if name in other}
    ordered = sorted(steps, key=lambda name: -abs(steps[name]))  # equal steps in the order of the questions
    both = {name: first[name] for name in steps}, {name: other[name] for name in steps}
    better, worse = ([name for name in ordered if sign * steps[name] > 0] for sign in (1, -1))
    return Against(len(steps), difference(*both) if steps else None, better, worse)


def page(runs: Sequence[Run], rows: Sequence[Row], benches: Mapping[str, Benchmark]) -> str:
    """All of it as one HTML page without links; benches: those whose questions and pictures can be shown."""
    import jinja2

    flips = [flip for row in rows for number, run in enumerate(runs[1:]) for flip in _flips(row, number, runs[0], run)]
    for flip in flips:
        bench = benches.get(flip.bench)
        asked = {one.id: one for one in bench.questions()} if bench else {}
        flip.cases = [_case(name, flip, asked.get(name), bench) for name in flip.ids[:SHOWN]]
    text = resources("mmalign.benchmarks").joinpath("compare.html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(text)
    return template.render(runs=runs, rows=rows, flips=flips)


@dataclass
class Flip:
    """The questions on which a run is better, or worse, than the first."""

    bench: str
    pair: tuple[Run, Run]
    better: bool
    ids: list[str]
    cases: list[dict[str, Any]] = field(default_factory=list)


def _flips(row: Row, number: int, first: Run, run: Run) -> list[Flip]:
    other = row.against[number]
    both = ((True, other.better), (False, other.worse)) if other else ()
    return [Flip(row.bench, (first, run), better, ids) for better, ids in both if ids]


def _case(name: str, flip: Flip, question: Question | None, bench: Benchmark | None) -> dict[str, Any]:
    """A question with its picture and both answers."""
    picture = _picture(bench, question.image) if bench and question and question.image is not None else None
    said = [(r.name, r.answers.get(flip.bench, {}).get(name), r.scores[flip.bench].items[name]) for r in flip.pair]
    return {"id": name, "text": question.text if question else "", "png": picture, "said": said}


def _picture(bench: Benchmark, reference: Any) -> str | None:
    """None where it is not there any more: the page does without it."""
    try:
        return png(bench.image(reference))
    except DataError:
        return None


def png(image: "Image") -> str:
    """A picture of at most 336 pixels a side, base64."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    held = io.BytesIO()
    small.save(held, "PNG")
    return base64.b64encode(held.getvalue()).decode()
