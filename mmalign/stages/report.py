"""The report stage: scores, losses and a few explained images of everything the scores rest on, in one HTML page."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from mmalign.errors import RunError
from mmalign.io import document, files, pages
from mmalign.io.document import Side
from mmalign.pipeline import finished, task
from mmalign.pipeline.task import Task
from mmalign.stages import charts
from mmalign.stages.charts import Chart
from mmalign.stages.lineage import ancestors, unique

RESAMPLES = 10_000
CEILING = "ceiling"  # of a layer: what can be read there at all


class Evaluated(TypedDict):
    """Of an evaluation's stage.json, beside what every stage has."""

    metrics: dict[str, dict[str, float]]
    headlines: dict[str, str]  # benchmark: its metric


class Picture(TypedDict):
    """An image of pictures.json, its nearest words in the order of the visual tokens."""

    png: str
    grid: tuple[Side, Side] | None
    words: list[str]
    question: str
    id: str


class Answer(TypedDict):
    id: str
    text: str


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
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None


def run(stage_task: Task) -> dict[str, Any]:
    scores = [folder for slot, folder in stage_task.reads if slot == "scores"]
    arms = stage_task.arms if len(stage_task.arms) == len(scores) and any(stage_task.arms) else [""] * len(scores)
    rows = cells(scores, arms)
    page = html(stage_task, scores, arms, rows)
    files.write(stage_task.folder / "report.html", page)
    summary = {"recipe": stage_task.recipe, "cells": [{**asdict(c), "mean": c.mean, "spread": c.spread} for c in rows]}
    files.write_json(stage_task.folder / "report.json", summary)
    return {"metrics": {}, "html": f"{stage_task.folder.name}/report.html"}


def cells(scores: Sequence[Path], arms: Sequence[str]) -> list[Cell]:
    """Every score and every final loss, metric by metric, the first arm first; differences to that one."""
    table: dict[tuple[str, str], dict[str, Cell]] = {}
    several = len(set(arms)) < len(arms)  # evaluations of an arm: their scores stand apart, by the stage's name
    for folder, arm_seed in zip(scores, arms, strict=True):
        arm, _, seed = arm_seed.rpartition(" ")
        stage = f"{task.done(folder)['name']}: " if several else ""
        scored = ((stage + bench, metric, value, headline) for bench, metric, value, headline in _scored(folder))
        for bench, metric, value, headline in [*scored, *_losses(folder)]:
            of_arms = table.setdefault((bench, metric), {})
            cell = of_arms.setdefault(arm, Cell(arm, bench, metric, {}, headline))
            cell.values[seed or str(task.done(folder)["seed"])] = value
    first = arms[0].rpartition(" ")[0] if arms else ""
    for of_arms in table.values():
        for arm, cell in of_arms.items():
            if arm != first and first in of_arms:
                cell.difference, cell.interval = paired(of_arms[first].values, cell.values)
    return [cell for of_arms in table.values() for cell in of_arms.values()]


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


def by_layer(rows: Sequence[Cell]) -> list[Chart]:
    """A chart for every benchmark that measures the layers one by one (`object_layer_3`), layer 0 being the metric
    without one; dashed: `ceiling_layer_3`, beside each arm's own."""
    values = {(cell.bench, cell.arm, cell.metric): cell.values for cell in rows}
    layered = {key: layer for key in values if (layer := finished.layer_of(key[2]))}
    several = len({(bench, name) for (bench, _, _), (name, _) in layered.items() if name != CEILING}) > len(
        {bench for bench, _, _ in layered}
    )
    of_bench: dict[str, Chart] = {}
    for (bench, arm, metric), (name, number) in layered.items():
        chart = of_bench.setdefault(bench, Chart(f"{bench}: {name}, by layer", across="layer"))
        drawn = chart.dashed if name == CEILING else chart.lines
        seeds = drawn.setdefault(" ".join(filter(None, (arm, name if several and name != CEILING else ""))), {})
        for seed, value in values[bench, arm, metric].items():
            first = values.get((bench, arm, name), {})
            line = seeds.setdefault(seed, [(0.0, first[seed])] if seed in first else [])
            line.append((float(number), value))
            line.sort()
    return [chart for chart in of_bench.values() if chart.lines]


def told(scores: Sequence[Path], arms: Sequence[str], key: str) -> list[tuple[str, str]]:
    """(stage and arm, what it says) of all that the scores rest on. key: `warnings`, or `account`: left out and cut."""
    return list(dict.fromkeys(
        (" ".join(filter(None, (about["name"], arm))), text)
        for folder, arm in zip(scores, arms, strict=True)
        for _, about in ancestors(folder)
        for text in about.get(key, [])
    ))  # fmt: skip


def html(stage_task: Task, scores: Sequence[Path], arms: Sequence[str], rows: Sequence[Cell]) -> str:
    """The page: nothing in it is loaded from elsewhere."""
    stages = [(place.name, about) for place, about in unique(ancestors(folder) for folder in scores)]
    return pages.page(
        "mmalign.stages",
        "report.html",
        recipe=stage_task.recipe,
        cells=[cell for cell in rows if not finished.layer_of(cell.metric)],
        arms=list(dict.fromkeys(cell.arm for cell in rows)),
        study=len({cell.arm for cell in rows}) > 1,
        layers=[charts.svg(chart) for chart in by_layer(rows)],
        evaluations=[charts.svg(chart) for chart in charts.evaluations(scores, arms)],
        charts=[charts.svg(chart) for chart in charts.curves(scores, arms)],
        premise=[charts.svg(chart) for chart in charts.premise(scores, arms)],
        warnings=told(scores, arms, "warnings"),
        accounts=told(scores, arms, "account"),
        pictures=_pictures(scores, arms),
        stages=stages,
    )


def _pictures(scores: Sequence[Path], arms: Sequence[str]) -> list[dict[str, Any]]:
    """The explained images of each arm's first seed, with the model's answer to each question."""
    pictures = []
    done: set[str] = set()
    for folder, arm_seed in zip(scores, arms, strict=True):
        arm = arm_seed.rpartition(" ")[0]
        if arm in done or not (folder / "pictures.json").exists():
            continue
        done.add(arm)
        answers = _answers(folder)
        for picture in _explained(folder / "pictures.json"):
            pictures.append({**picture, "arm": arm, "answer": answers.get(picture["id"], "")})
    return pictures


def _explained(place: Path) -> list[dict[str, Any]]:
    """The pictures of an evaluation, each {png, grid, rows of words, question, id}; a RunError for anything else."""
    pictures = []
    try:
        for raw in files.read_json(place, kind=list[Picture], fix=task.AGAIN):
            rows, columns = pages.grid(raw["grid"], len(raw["words"]))
            lines = [raw["words"][row * columns : (row + 1) * columns] for row in range(rows)]
            texts = {key: raw[key] for key in ("question", "id")}
            pictures.append({"png": pages.png(raw["png"]), "grid": (rows, columns), "rows": lines, **texts})
    except ValueError as err:
        raise RunError(f"pictures.json is damaged: {err}", at=str(place), fix="evaluate again: --force") from err
    return pictures


def _answers(folder: Path) -> dict[str, str]:
    """{question id: answer} of the benchmark whose images are shown: the first that asks questions."""
    places = (folder / f"{bench}.jsonl" for bench in task.done(folder)["metrics"])
    asked = next((place for place in places if files.exists(place)), None)
    return {row["id"]: row["text"] for row in files.read_jsonl(asked, kind=Answer, fix=task.AGAIN)} if asked else {}
