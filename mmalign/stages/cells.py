"""Every score and every final loss of a report: by arm, seed, benchmark and metric, paired with the first arm."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from mmalign.errors import RunError
from mmalign.io import document
from mmalign.pipeline import task
from mmalign.stages.lineage import ancestors

RESAMPLES = 10_000


class Evaluated(TypedDict):
    """Of an evaluation's stage.json, beside what every stage has."""

    metrics: dict[str, dict[str, float]]
    headlines: dict[str, str]  # benchmark: its metric


@dataclass
class Cell:
    """One metric of one arm over its seeds; `difference` and `interval` against the first arm, paired by seed."""

    arm: str
    bench: str  # or the training stage whose loss it is
    metric: str
    values: dict[str, float]  # seed: value
    headline: bool
    difference: float | None = None
    interval: tuple[float, float] | None = None  # 95 %, bootstrap over the pairs; None: fewer than two

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
    for of_arms in table.values():
        for arm, cell in of_arms.items():
            if arm != first and first in of_arms:
                cell.difference, cell.interval = paired(of_arms[first].values, cell.values)
    return [cell for of_arms in table.values() for cell in of_arms.values()]


def evaluations(scores: Sequence[Path], arms: Sequence[str]) -> Iterator[tuple[Path, str, str, str]]:
    """(folder, arm, seed, what its benchmarks' names begin with: the stage's, where an arm has several evaluations)."""
    several = len(set(arms)) < len(arms)
    for folder, arm_seed in zip(scores, arms, strict=True):
        arm, _, seed = arm_seed.rpartition(" ")
        about = task.done(folder)
        yield folder, arm, seed or str(about["seed"]), f"{about['name']}: " if several else ""


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


def paired(base: dict[str, float], other: dict[str, float]) -> tuple[float | None, tuple[float, float] | None]:
    """Mean difference over the seeds both have, and its 95 % bootstrap interval, which takes two of them."""
    import numpy as np

    gaps = np.array([other[seed] - base[seed] for seed in base if seed in other])
    if len(gaps) < 2:
        return (float(gaps[0]) if len(gaps) else None), None
    drawn = np.random.default_rng(0).choice(gaps, (RESAMPLES, len(gaps))).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(gaps.mean()), (float(low), float(high))
