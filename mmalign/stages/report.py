"""The report stage: scores, losses and a few explained images of everything the scores rest on, in one HTML page."""

import io
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import jinja2

from mmalign import files, task
from mmalign.task import Task

RESAMPLES = 10_000


@dataclass
class Cell:
    """One metric of one arm over its seeds; `difference` and `interval` against the first arm, paired by seed."""

    arm: str
    bench: str
    metric: str
    values: dict[str, float]  # seed: value
    headline: bool
    difference: float | None = None
    interval: tuple[float, float] | None = None  # 95 %, bootstrap over the pairs

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values.values())

    @property
    def spread(self) -> float:
        """Standard deviation over seeds."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else 0.0


@dataclass
class Chart:
    title: str
    lines: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # name: (step, value)


def run(given: Task) -> dict[str, Any]:
    scores = [folder for slot, folder in given.reads if slot == "scores"]
    arms = given.arms if len(given.arms) == len(scores) and any(given.arms) else [""] * len(scores)
    found = cells(scores, arms)
    page = html(given, scores, arms, found)
    files.write(given.folder / "report.html", page)
    summary = {"recipe": given.recipe, "cells": [asdict(cell) for cell in found]}
    files.write_json(given.folder / "report.json", summary)
    return {"metrics": {}, "html": f"{given.folder.name}/report.html"}


def cells(scores: Sequence[Path], arms: Sequence[str]) -> list[Cell]:
    """Every metric of every arm, the first arm's first; differences where there are several arms."""
    found: dict[tuple[str, str, str], Cell] = {}
    for folder, arm_seed in zip(scores, arms, strict=True):
        about = task.done(folder)
        arm, _, seed = arm_seed.rpartition(" ")
        for bench, metrics in about["metrics"].items():
            for metric, value in metrics.items():
                headline = about["headlines"][bench] == metric
                cell = found.setdefault((arm, bench, metric), Cell(arm, bench, metric, {}, headline))
                cell.values[seed or str(about["seed"])] = value
    first = next(iter(found.values())).arm if found else ""
    for (arm, bench, metric), cell in found.items():
        base = found.get((first, bench, metric))
        if arm != first and base:
            cell.difference, cell.interval = paired(base.values, cell.values)
    return list(found.values())


def paired(base: dict[str, float], other: dict[str, float]) -> tuple[float | None, tuple[float, float] | None]:
    """Mean difference over the seeds both have, and its 95 % bootstrap interval."""
    import numpy as np

    gaps = np.array([other[seed] - base[seed] for seed in base if seed in other])
    if not len(gaps):
        return None, None
    drawn = np.random.default_rng(0).choice(gaps, (RESAMPLES, len(gaps))).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(gaps.mean()), (float(low), float(high))


def ancestors(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A stage and everything it rests on, the most basic first, each once."""
    seen: set[Path] = set()

    def walk(place: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
        if place in seen:
            return
        seen.add(place)
        about = task.done(place)
        for _, other in about["reads"]:
            yield from walk(place.parent / other)
        yield place, about

    yield from walk(folder)


def curves(scores: Sequence[Path], arms: Sequence[str]) -> list[Chart]:
    """A chart for every loss term of every training stage, a line for every arm and seed."""
    charts: dict[tuple[str, str], Chart] = {}
    seen: set[Path] = set()
    for folder, arm in zip(scores, arms, strict=True):
        for place, about in ancestors(folder):
            if place in seen or not (place / "metrics.jsonl").exists():
                continue
            seen.add(place)
            for term, line in _lines(place / "metrics.jsonl").items():
                chart = charts.setdefault((about["name"], term), Chart(f"{about['name']}: {term}"))
                chart.lines[arm or about["name"]] = line
    return list(charts.values())


SHOWN = ("tokens", "images", "lr", "steps_per_second", "norm", "step")  # in the log, but no curve of the report


def _lines(place: Path) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for text in place.read_text(encoding="utf-8").splitlines():
        row = json.loads(text)
        for name, value in row.items():
            if name not in SHOWN and not (name == "loss" and len(row) - len(SHOWN) <= 2):
                found[name].append((row["step"], value))
    return found


def svg(chart: Chart) -> str:
    """A chart as inline SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(4.2, 2.4))
    for name, points in chart.lines.items():
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2)
    axes.set_title(chart.title, fontsize=9)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=7)
    if 1 < len(chart.lines) <= 10:
        axes.legend(fontsize=6)
    figure.tight_layout()
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return out.getvalue()[out.getvalue().index("<svg") :]


def html(given: Task, scores: Sequence[Path], arms: Sequence[str], found: Sequence[Cell]) -> str:
    """The page: nothing in it is loaded from elsewhere."""
    text = resources("mmalign.stages").joinpath("report.html").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
    stages = [(place.name, about) for place, about in _unique(ancestors(folder) for folder in scores)]
    return page.render(
        recipe=given.recipe,
        cells=found,
        arms=list(dict.fromkeys(cell.arm for cell in found)),
        study=len({cell.arm for cell in found}) > 1,
        charts=[svg(chart) for chart in curves(scores, arms)],
        pictures=_pictures(scores, arms),
        stages=stages,
    )


def _unique(walks: Iterable[Iterator[tuple[Path, dict[str, Any]]]]) -> list[tuple[Path, dict[str, Any]]]:
    return list({place: (place, about) for walk in walks for place, about in walk}.values())


def _pictures(scores: Sequence[Path], arms: Sequence[str]) -> list[dict[str, Any]]:
    """The explained images of each arm's first seed, with the model's answer to each question."""
    found = []
    done: set[str] = set()
    for folder, arm_seed in zip(scores, arms, strict=True):
        arm = arm_seed.rpartition(" ")[0]
        if arm in done or not (folder / "pictures.json").exists():
            continue
        done.add(arm)
        said = _answers(folder)
        for picture in files.read_json(folder / "pictures.json"):
            rows, columns = picture["grid"]
            words = [picture["words"][r * columns : (r + 1) * columns] for r in range(rows)]
            found.append({**picture, "rows": words, "arm": arm, "answer": said.get(picture["id"], "")})
    return found


def _answers(folder: Path) -> dict[str, str]:
    """{question id: answer} over all the benchmarks of an evaluation."""
    lines = (line for place in sorted(folder.glob("*.jsonl")) for line in place.read_text().splitlines())
    rows = (json.loads(line) for line in lines if line)
    return {row["id"]: row["text"] for row in rows if "id" in row and "text" in row}
