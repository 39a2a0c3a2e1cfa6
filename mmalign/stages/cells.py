"""Every score and every final loss of a report: by arm, seed, benchmark and metric, paired with the first arm."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from mmalign.errors import RunError
from mmalign.io import document
from mmalign.pipeline import task
from mmalign.stages.lineage import ancestors
from mmalign.stages.questions import Questions, Span, evaluations

RESAMPLES = 10_000


class Evaluated(TypedDict):
    """Of an evaluation's stage.json, beside what every stage has."""

    metrics: dict[str, dict[str, float]]
    headlines: dict[str, str]  # benchmark: its metric


@dataclass
class Cell:
    """One metric of one arm over its seeds; `difference` and `interval` against the first arm, paired.

    An interval of a headline is from its questions where these are known (questions.py), any other is over seeds alone.
    """

    arm: str
    bench: str  # or the training stage whose loss it is
    metric: str
    values: dict[str, float]  # seed: value
    headline: bool
    difference: float | None = None
    interval: Span | None = None  # of the difference
    own: Span | None = None  # of a headline of one seed
    notes: list[str] = field(default_factory=list)  # what a reader of the intervals has to know

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values.values())

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None: one seed has none."""
        if len(self.values) < 2:
            return None
        finite = all(map(math.isfinite, self.values.values()))
        return statistics.stdev(self.values.values()) if finite else math.nan


def cells(scores: Sequence[Path], arms: Sequence[str]) -> list[Cell]:
    """Every score and every final loss, metric by metric, the first arm first; differences to that one."""
    table: dict[tuple[str, str], dict[str, Cell]] = {}
    for folder, arm, seed, stage in evaluations(scores, arms):
        scored = ((stage + bench, metric, value, headline) for bench, metric, value, headline in _scored(folder))
        for bench, metric, value, headline in [*scored, *_losses(folder)]:
            of_arms = table.setdefault((bench, metric), {})
            cell = of_arms.setdefault(arm, Cell(arm, bench, metric, {}, headline))
            cell.values[seed] = value
    first = arms[0].rpartition(" ")[0] if arms else ""
    questions = Questions(scores, arms)
    for of_arms in table.values():
        for arm, cell in of_arms.items():
            if cell.headline and len(cell.values) == 1:
                cell.own = questions.interval(cell.bench, arm, *cell.values)
            if arm != first and first in of_arms:
                cell.difference, cell.interval = paired(of_arms[first].values, cell.values)
                if cell.headline:
                    _from_questions(cell, of_arms[first], questions)
    return [cell for of_arms in table.values() for cell in of_arms.values()]


def as_json(cell: Cell) -> dict[str, Any]:
    """What report.json has of a cell. interval: its ends; drawn: what was drawn again for it."""
    kept = {key: value for key, value in asdict(cell).items() if key not in ("own", "notes")}
    span = cell.interval
    ends = {"interval": span and (span.low, span.high), "drawn": span and span.drawn}
    return {**kept, **ends, "mean": cell.mean, "spread": cell.spread}


def _from_questions(cell: Cell, first: Cell, questions: Questions) -> None:
    """The interval of a headline's difference from its single questions, where they are known."""
    seeds = [seed for seed in first.values if seed in cell.values]
    gap = questions.gap(cell.bench, first.arm, cell.arm, seeds, cell.notes)
    if gap is None:
        return
    if not math.isclose(gap.mean, cell.difference or 0.0, abs_tol=1e-9):
        cell.notes.append(f"{cell.bench}, {cell.arm}: the difference is on the {gap.questions} questions of both")
    cell.difference, cell.interval = gap.mean, gap.span


def _scored(folder: Path) -> Iterator[tuple[str, str, float, bool]]:
    """(benchmark, metric, value, whether it is the benchmark's headline) of an evaluation."""
    about = task.done(folder)
    document.fit(about, Evaluated, str(folder / "stage.json"))
    for bench, metrics in about["metrics"].items():
        for metric, value in metrics.items():
            yield bench, metric, value, about["headlines"].get(bench) == metric


def _losses(folder: Path) -> Iterator[tuple[str, str, float, bool]]:
    """(stage, loss term, its mean over the last logged steps, False) of every training stage below an evaluation."""
    for place, about in ancestors(folder):
        for term in about["what"].get("settings", {}).get("objectives") or ():
            if not isinstance(value := about["metrics"].get(term), (int, float)):
                at = f"{place / 'stage.json'}  metrics"
                raise RunError(
                    f"stage.json is damaged: metrics lacks the loss of {document.shown(term)}", at=at, fix=task.AGAIN
                )
            yield about["name"], f"{term} loss", value, False


def paired(base: dict[str, float], other: dict[str, float]) -> tuple[float | None, Span | None]:
    """Mean difference over the seeds both have, and its 95 % bootstrap interval, which takes two of them."""
    import numpy as np

    gaps = np.array([other[seed] - base[seed] for seed in base if seed in other])
    if len(gaps) < 2:
        return (float(gaps[0]) if len(gaps) else None), None
    drawn = np.random.default_rng(0).choice(gaps, (RESAMPLES, len(gaps))).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(gaps.mean()), Span(float(low), float(high), {"seed": len(gaps)})
