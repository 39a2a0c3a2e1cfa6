"""What a report says first: the headline of every benchmark, by arm, with intervals and what each has over the first.

No interval is made here, nor a number: they are the cells' (cells.py).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mmalign.io import pages
from mmalign.stages import forest
from mmalign.stages.cells import Cell
from mmalign.stages.questions import Span


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


def of(rows: Sequence[Cell]) -> Verdict:
    """The verdict on evaluations, out of their cells."""
    headlines = [cell for cell in rows if cell.headline]
    of_bench: dict[str, list[Cell]] = {}
    for cell in headlines:
        of_bench.setdefault(cell.bench, []).append(cell)
    digits = {bench: 4 if all(abs(c.mean) <= 1 for c in own) else 2 for bench, own in of_bench.items()}
    lines = [_row(cell, digits[cell.bench]) for cell in headlines]
    return Verdict(lines, list(dict.fromkeys(note for cell in headlines for note in cell.notes)))


def _row(cell: Cell, digits: int) -> Row:
    of = (cell.arm, cell.bench, cell.metric, len(cell.values), cell.mean, cell.spread)
    return Row(*of, cell.own, cell.difference, cell.interval, digits)
