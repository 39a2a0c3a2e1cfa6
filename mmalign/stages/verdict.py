"""What a report says first: the headline of every benchmark, by arm, with intervals and what each has over the first.

No interval is made here. Of several seeds it is the report's own, paired by seed (cells.py); of one seed it is that of
`mmalign compare` and `mmalign score`, by picture (benchmarks/bootstrap.py).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmalign.benchmarks import bootstrap, compare
from mmalign.benchmarks.asked import Asked
from mmalign.benchmarks.headline import Headline
from mmalign.errors import DataError
from mmalign.io import pages
from mmalign.pipeline import finished, task
from mmalign.stages import cells, forest
from mmalign.stages.cells import Cell


@dataclass(frozen=True)
class Span:
    """A 95 % interval, and what was drawn again for it: so many seeds, pictures or questions."""

    low: float
    high: float
    by: str
    of: int


@dataclass
class Row:
    """A headline of one arm; `difference` and `gap` against the first arm."""

    arm: str
    bench: str
    metric: str
    seeds: int
    mean: float
    spread: float | None  # standard deviation over seeds
    interval: Span | None  # of the mean: of one seed, by picture
    difference: float | None
    gap: Span | None  # of the difference
    digits: int  # behind the point: 4 where a benchmark gives fractions

    @property
    def told(self) -> str:
        """What the interval of the difference says."""
        if self.difference is None:
            return ""
        if self.gap is None:
            return "no interval"
        return "higher" if self.gap.low > 0 else "lower" if self.gap.high < 0 else "not told apart"

    def number(self, value: float | None, signed: bool = False) -> str:
        """A value of this benchmark as the page and the tables print it."""
        return "" if value is None else f"{value:{'+' if signed else ''}.{self.digits}f}"


@dataclass
class Verdict:
    """The headlines, benchmark by benchmark, the first arm first. notes: what a reader of them has to know."""

    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(row.arm for row in self.rows))

    @property
    def study(self) -> bool:
        """Whether there is anything to compare: several arms."""
        return len(self.arms) > 1

    @property
    def by_bench(self) -> dict[str, list[Row]]:
        rows_of: dict[str, list[Row]] = {}
        for row in self.rows:
            rows_of.setdefault(row.bench, []).append(row)
        return rows_of

    @property
    def seeds(self) -> bool:
        """Whether some arm has several, and so a spread."""
        return any(row.spread is not None for row in self.rows)

    @property
    def spans(self) -> bool:
        """Whether some arm's own score has an interval."""
        return any(row.interval for row in self.rows)

    @property
    def forests(self) -> list[forest.Panel]:
        """A panel of the plot for every benchmark of which some arm has a difference."""
        panels: dict[str, forest.Panel] = {}
        for row in self.rows:
            if row.difference is not None and math.isfinite(row.difference):
                panel = panels.setdefault(row.bench, forest.Panel(f"{row.bench} {row.metric}"))
                ends = None if row.gap is None else (row.gap.low, row.gap.high)
                text = row.number(row.difference, signed=True)
                if ends:
                    text += f" [{row.number(ends[0], signed=True)}, {row.number(ends[1], signed=True)}]"
                panel.marks.append(forest.Mark(row.arm, row.difference, ends, text, row.told))
        return forest.placed(list(panels.values()))


def as_json(verdict: Verdict) -> dict[str, Any]:
    """What report.json has of it."""
    return {"rows": [{**asdict(row), "told": row.told} for row in verdict.rows], "notes": verdict.notes}


def html(verdict: Verdict) -> str:
    """The section with which a report begins."""
    panels = verdict.forests
    sizes = {"width": forest.WIDTH, "height": forest.height(panels)}
    return pages.page("mmalign.stages", "verdict.html", v=verdict, forests=panels, **sizes)


def of(scores: Sequence[Path], arms: Sequence[str], rows: Sequence[Cell]) -> Verdict:
    """The verdict on evaluations, out of their cells."""
    headlines = [cell for cell in rows if cell.headline]
    of_bench: dict[str, list[Cell]] = {}
    for cell in headlines:
        of_bench.setdefault(cell.bench, []).append(cell)
    digits = {bench: 4 if all(abs(c.mean) <= 1 for c in own) else 2 for bench, own in of_bench.items()}
    evaluated = _Evaluated(scores, arms)
    firsts = {bench: own[0] for bench, own in of_bench.items()}
    lines = [_row(cell, firsts[cell.bench], evaluated, digits[cell.bench]) for cell in headlines]
    return Verdict(lines, list(dict.fromkeys(evaluated.notes)))


def _row(cell: Cell, first: Cell, evaluated: "_Evaluated", digits: int) -> Row:
    seeds = list(cell.values)
    own = evaluated.interval(cell.bench, cell.arm, seeds[0]) if len(seeds) == 1 else None
    row = Row(cell.arm, cell.bench, cell.metric, len(seeds), cell.mean, cell.spread, own, cell.difference, None, digits)
    both = [seed for seed in first.values if seed in cell.values]
    if cell.interval:
        row.gap = Span(*cell.interval, "seed", len(both))
    elif cell.difference is not None and len(both) == 1:
        row.difference, row.gap = evaluated.gap(cell, first, both[0])
    return row


class _Evaluated:
    """The evaluations of a report, read when an interval needs their questions. notes: what a reader has to know."""

    def __init__(self, scores: Sequence[Path], arms: Sequence[str]) -> None:
        self.places: dict[tuple[str, str, str], tuple[Path, str]] = {}
        self.notes: list[str] = []
        self.runs: dict[tuple[Path, str], compare.Run] = {}
        for folder, arm, seed, stage in cells.evaluations(scores, arms):
            for bench in task.done(folder)["metrics"]:
                self.places[stage + bench, arm, seed] = (folder, bench)

    def interval(self, bench: str, arm: str, seed: str) -> Span | None:
        """Of the headline of one evaluation; None: the score does not say what it is made of."""
        place = self.places[bench, arm, seed]
        run = self._run(place, arm)
        headline = Headline.of(run.scores[place[1]]) if run else None
        if run is None or headline is None:
            return None
        asked = run.asked.get(place[1])
        pictures = {qid: asked.picture(qid, asked.by_content) for qid in headline.parts_of} if asked else {}
        cluster_of = {qid: picture for qid, picture in pictures.items() if picture is not None}
        found = bootstrap.interval(headline, cluster_of)
        by = "picture" if cluster_of else "question"
        return Span(found.low, found.high, by, bootstrap.clusters(headline, cluster_of))

    def gap(self, cell: Cell, first: Cell, seed: str) -> tuple[float | None, Span | None]:
        """What an arm's evaluation has over the first arm's, on the questions both were asked."""
        runs = [self._run(self.places[cell.bench, one.arm, seed], one.arm) for one in (first, cell)]
        known = [run for run in runs if run]
        if len(known) < 2:
            return cell.difference, None
        try:
            (line,) = compare.compare(known)
        except DataError as err:  # no question in common
            self.notes.append(f"{cell.bench}: {err.what}")
            return cell.difference, None
        self.notes += line.notes
        pairs = line.against[0]
        if pairs is None or pairs.difference is None:
            return cell.difference, None
        gap = pairs.difference
        if not math.isclose(gap.mean, cell.difference or 0.0, abs_tol=1e-9):
            self.notes.append(f"{cell.bench}, {cell.arm}: the difference is on the {pairs.questions} questions of both")
        return gap.mean, Span(gap.low, gap.high, pairs.cluster, pairs.clusters)

    def _run(self, place: tuple[Path, str], name: str) -> compare.Run | None:
        """One benchmark of an evaluation, without answers; None where it kept no values of single questions."""
        folder, bench = place
        if place not in self.runs and (folder / f"{bench}.json").exists():
            record = folder / f"{bench}.asked.json"
            asked = {bench: Asked.read(record, finished.EVALUATION)} if record.exists() else {}
            settings: dict[str, Any] = task.done(folder)["what"].get("settings", {})
            protocol = str(settings.get("protocol", "official"))
            self.runs[place] = compare.Run(name, {bench: finished.score(folder, bench)}, {}, protocol, asked)
        return self.runs.get(place)
