"""Runs side by side: headlines, what one has over the first on the same questions, and which questions flipped."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmalign.benchmarks import Benchmark, Question, Score
from mmalign.benchmarks.bootstrap import Difference, difference
from mmalign.errors import DataError
from mmalign.io import pages

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
class PairedComparison:
    """What a run has over the first one, paired by question; the unit is that of the benchmark's items."""

    questions: int  # that both answered
    difference: Difference | None  # None: no question is in both
    better: list[str]  # ids whose value rose, the largest step first
    worse: list[str]


@dataclass
class ComparisonRow:
    """A benchmark in all runs."""

    bench: str
    metric: str  # the headline
    values: list[float | None]  # of each run; None: it has no such score
    against: list[PairedComparison | None]  # of each run but the first
    notes: list[str] = field(default_factory=list)


def compare(runs: Sequence[Run]) -> list[ComparisonRow]:
    """A row for each benchmark that some run has, in the order of the first that has it."""
    if len(runs) < 2:
        raise DataError(f"{len(runs)} run is nothing to compare", fix="mmalign compare RUN RUN")
    benches = dict.fromkeys(bench for run in runs for bench in run.scores)
    return [_row(bench, runs) for bench in benches]


def _row(bench: str, runs: Sequence[Run]) -> ComparisonRow:
    metric = next(run.scores[bench].headline for run in runs if bench in run.scores)
    values = [run.scores[bench].metrics.get(metric) if bench in run.scores else None for run in runs]
    first, *others = [run.scores[bench].items if bench in run.scores else {} for run in runs]
    row = ComparisonRow(bench, metric, values, [_paired(first, other) for other in others])
    for run, other in zip(runs[1:], others, strict=True):
        if first and other and (unpaired := len(first.keys() ^ other.keys())):
            row.notes.append(f"{bench}: {unpaired} questions are in {runs[0].name} or {run.name} only, and left out")
        if bench in run.scores and bench in runs[0].scores and run.protocol != runs[0].protocol:
            row.notes.append(f"{bench}: {runs[0].name} is scored as {runs[0].protocol}, {run.name} as {run.protocol}")
    return row


def _paired(first: Mapping[str, float], other: Mapping[str, float]) -> PairedComparison | None:
    """None where one of them has no values of single questions."""
    if not first or not other:
        return None
    steps = {qid: other[qid] - value for qid, value in first.items() if qid in other}
    ordered = sorted(steps, key=lambda qid: -abs(steps[qid]))  # equal steps in the order of the questions
    both = {qid: first[qid] for qid in steps}, {qid: other[qid] for qid in steps}
    better, worse = ([qid for qid in ordered if sign * steps[qid] > 0] for sign in (1, -1))
    return PairedComparison(len(steps), difference(*both) if steps else None, better, worse)


def page(runs: Sequence[Run], rows: Sequence[ComparisonRow], benches: Mapping[str, Benchmark]) -> str:
    """All of it as one HTML page without links; benches: those whose questions and pictures can be shown."""
    flips = [flip for row in rows for number, run in enumerate(runs[1:]) for flip in _flips(row, number, runs[0], run)]
    for flip in flips:
        bench = benches.get(flip.bench)
        questions = {question.id: question for question in bench.questions()} if bench else {}
        flip.cases = [_case(qid, flip, questions.get(qid), bench) for qid in flip.ids[:SHOWN]]
    return pages.page("mmalign.benchmarks", "compare.html", runs=runs, rows=rows, flips=flips)


@dataclass
class Flip:
    """The questions on which a run is better, or worse, than the first."""

    bench: str
    pair: tuple[Run, Run]
    better: bool
    ids: list[str]
    cases: list[dict[str, Any]] = field(default_factory=list)


def _flips(row: ComparisonRow, number: int, first: Run, run: Run) -> list[Flip]:
    pairs = row.against[number]
    both = ((True, pairs.better), (False, pairs.worse)) if pairs else ()
    return [Flip(row.bench, (first, run), better, ids) for better, ids in both if ids]


def _case(qid: str, flip: Flip, question: Question | None, bench: Benchmark | None) -> dict[str, Any]:
    """A question with its picture and both answers."""
    picture = _picture(bench, question.image) if bench and question and question.image is not None else None
    answers = [(r.name, r.answers.get(flip.bench, {}).get(qid), r.scores[flip.bench].items[qid]) for r in flip.pair]
    return {"id": qid, "text": question.text if question else "", "png": picture, "answers": answers}


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
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
