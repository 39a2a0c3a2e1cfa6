"""Runs side by side: headlines, what one has over the first on the same questions, and which questions flipped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmalign.benchmarks import Benchmark, Question, Score
from mmalign.benchmarks.asked import Asked
from mmalign.benchmarks.bootstrap import Difference, clusters, difference
from mmalign.benchmarks.headline import Headline
from mmalign.benchmarks.pairing import Heads, Pairing, pair
from mmalign.errors import DataError
from mmalign.io import pages
from mmalign.io.pictures import base64_png

SHOWN = 12  # questions shown of each benchmark and run, in each direction
SIDE = 336  # pixels of a picture's longer side


@dataclass
class Run:
    """One evaluation: what it scored and, for each benchmark, {question id: answer}, and what it asked."""

    name: str
    scores: Mapping[str, Score]
    answers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    protocol: str = "official"
    asked: Mapping[str, Asked] = field(default_factory=dict)  # without a benchmark: evaluated by an older mmalign


@dataclass
class PairedComparison:
    """What a run has over the first one, on the questions that both were asked."""

    questions: int  # that both were asked; copies of one count once
    values: tuple[float, float] | None  # both headlines on these questions; None: they are not made of questions
    difference: Difference | None  # of these values; None: no question is in both, or there are no values
    cluster: str  # what is resampled: picture, or question where no pictures are known
    clusters: int  # how many of these
    better: list[str]  # ids (the first run's) of questions whose value rose, the largest step first
    worse: list[str]
    other: dict[str, str]  # {id in the first run: id in the other} of these


@dataclass
class ComparisonRow:
    """A benchmark in all runs."""

    bench: str
    metric: str  # the headline
    values: list[float | None]  # of each run, on all that it was asked; None: it has no such score
    against: list[PairedComparison | None]  # of each run but the first
    notes: list[str] = field(default_factory=list)

    def tell(self, text: str) -> None:
        self.notes.append(f"{self.bench}: {text}")


def compare(runs: Sequence[Run]) -> list[ComparisonRow]:
    """A row for each benchmark that some run has, in the order of the first that has it.

    DataError where the runs have no question in common.
    """
    if len(runs) < 2:
        raise DataError(f"{len(runs)} run is nothing to compare", fix="mmalign compare RUN RUN")
    rows = [_row(bench, runs) for bench in dict.fromkeys(bench for run in runs for bench in run.scores)]
    for number, run in enumerate(runs[1:]):
        pairs = {row.bench: pairs for row in rows if (pairs := row.against[number])}
        if pairs and not any(one.questions for one in pairs.values()):
            what = f"{runs[0].name} and {run.name} have no question of {', '.join(pairs)} in common"
            known = all(bench in one.asked for one in (runs[0], run) for bench in pairs)
            how = "; a question is known by its text, its options and its picture" if known else ""
            raise DataError(what + how, fix="evaluate both on the same questions and pictures")
    return rows


def _row(bench: str, runs: Sequence[Run]) -> ComparisonRow:
    metric = next(run.scores[bench].headline for run in runs if bench in run.scores)
    values = [run.scores[bench].metrics.get(metric) if bench in run.scores else None for run in runs]
    row = ComparisonRow(bench, metric, values, [])
    for run in runs[1:]:
        row.against.append(_against(row, runs[0], run))
    return row


def _against(row: ComparisonRow, first: Run, run: Run) -> PairedComparison | None:
    """None where one of them has no values of single questions."""
    if not (found := matched(row, first, run)):
        return None
    pairing, both = found
    one, two = first.scores[row.bench], run.scores[row.bench]
    steps = pairing.steps(one.items, two.items)
    ordered = sorted(steps, key=lambda qid: -abs(steps[qid]))  # equal steps in the order of the questions
    better, worse = ([qid for qid in ordered if sign * steps[qid] > 0] for sign in (1, -1))
    other = {qid: pairing.ids[1][qid][0] for qid in ordered if steps[qid]}
    compared = PairedComparison(len(pairing.ids[0]), None, None, "question", 0, better, worse, other)
    if both:
        compared.values, compared.difference = (both[0].value, both[1].value), difference(*both, pairing.cluster_of)
        compared.clusters = clusters(both[0], pairing.cluster_of)
        compared.cluster = "picture" if pairing.cluster_of else "question"
    return compared


def matched(row: ComparisonRow, first: Run, run: Run) -> tuple[Pairing, Heads | None] | None:
    """The questions that two runs of a row's benchmark share, and both headlines on these; what a reader has to know of
    it is told to the row. None where one run has no values of single questions."""
    bench = row.bench
    if not (bench in first.scores and bench in run.scores):
        return None
    if run.protocol != first.protocol:
        row.tell(f"{first.name} is scored as {first.protocol}, {run.name} as {run.protocol}")
    one, two = first.scores[bench], run.scores[bench]
    if not one.items or not two.items:
        return None
    heads = _heads(row, first, run)
    ids = (list(heads[0].parts_of), list(heads[1].parts_of)) if heads else (list(one.items), list(two.items))
    pairing = pair(ids, heads, [first.asked.get(bench), run.asked.get(bench)])
    _tell(row, pairing, first, run)
    if not pairing.ids[0]:
        row.tell(f"{first.name} and {run.name} have no question in common")
    return pairing, pairing.headlines(heads) if heads and pairing.ids[0] else None


def _heads(row: ComparisonRow, first: Run, run: Run) -> Heads | None:
    """Both headlines as functions of their questions; None where that is not known, or they are not of one kind."""
    one, two = first.scores[row.bench], run.scores[row.bench]
    if one.headline != two.headline:
        row.tell(f"no difference: the headline of {first.name} is {one.headline}, of {run.name} {two.headline}")
        return None
    heads = Headline.of(one), Headline.of(two)
    if heads[0] and heads[1]:
        return heads[0], heads[1]
    lacking = " and ".join(its.name for its, head in zip((first, run), heads, strict=True) if head is None)
    row.tell(f"no difference: the score of {lacking} does not say how {one.headline} is made of its questions")
    return None


def _tell(row: ComparisonRow, pairing: Pairing, first: Run, run: Run) -> None:
    """What a reader has to know of how the questions were matched."""
    if pairing.by_id:
        old = " and ".join(one.name for one in (first, run) if row.bench not in one.asked)
        row.tell(f"questions are matched by their ids alone: what {old} asked was not written down by an older mmalign")
        if not pairing.cluster_of:
            row.tell("nor are their pictures known: the interval is by question, and may be too narrow")
    if pairing.apart:
        renewed = f"; {pairing.renewed} ids mean another question in each" if pairing.renewed else ""
        row.tell(f"{pairing.apart} questions are in {first.name} or {run.name} only, and left out{renewed}")
    if pairing.copies:
        row.tell(f"{pairing.copies} copies of questions are not counted again")


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
    other: dict[str, str]  # {id in the first run: id in the other}
    cases: list[dict[str, Any]] = field(default_factory=list)


def _flips(row: ComparisonRow, number: int, first: Run, run: Run) -> list[Flip]:
    pairs = row.against[number]
    both = ((True, pairs.better), (False, pairs.worse)) if pairs else ()
    return [Flip(row.bench, (first, run), better, ids, pairs.other) for better, ids in both if pairs and ids]


def _case(qid: str, flip: Flip, question: Question | None, bench: Benchmark | None) -> dict[str, Any]:
    """A question with its picture and both answers."""
    picture = _picture(bench, question.image) if bench and question and question.image is not None else None
    ids = zip(flip.pair, (qid, flip.other[qid]), strict=True)
    answers = [(r.name, r.answers.get(flip.bench, {}).get(own), r.scores[flip.bench].items[own]) for r, own in ids]
    return {"id": qid, "text": question.text if question else "", "png": picture, "answers": answers}


def _picture(bench: Benchmark, reference: Any) -> str | None:
    """None where it is not there any more: the page does without it."""
    try:
        return base64_png(bench.image(reference), SIDE)
    except DataError:
        return None
