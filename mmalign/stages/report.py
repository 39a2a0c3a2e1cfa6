"""The report stage: scores, losses and a few explained images of everything the scores rest on, in one HTML page."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmalign.io import files, pages
from mmalign.pipeline import finished
from mmalign.pipeline.task import Task
from mmalign.stages import charts, explored, reproduce, tables, verdict
from mmalign.stages.cells import Cell, cells
from mmalign.stages.charts import Chart
from mmalign.stages.lineage import ancestors, unique

CEILING = "ceiling"  # of a layer: what can be read there at all


def run(stage_task: Task) -> dict[str, Any]:
    scores = [folder for slot, folder in stage_task.reads if slot == "scores"]
    arms = stage_task.arms if len(stage_task.arms) == len(scores) and any(stage_task.arms) else [""] * len(scores)
    rows = cells(scores, arms)
    said = verdict.of(scores, arms, rows)
    again = reproduce.html(stage_task, _stages(scores))
    files.write(stage_task.folder / "report.html", html(stage_task, scores, arms, rows, said, again))
    files.write(stage_task.folder / "report.csv", tables.as_csv(rows, said))
    files.write(stage_task.folder / "report.tex", tables.as_tex(said))
    table = [{**asdict(c), "mean": c.mean, "spread": c.spread} for c in rows]
    summary = {"recipe": stage_task.recipe, "cells": table, "verdict": verdict.as_json(said)}
    files.write_json(stage_task.folder / "report.json", summary)
    return {"metrics": {}, "html": f"{stage_task.folder.name}/report.html"}


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


def html(
    stage_task: Task,
    scores: Sequence[Path],
    arms: Sequence[str],
    rows: Sequence[Cell],
    said: verdict.Verdict | None = None,
    again: str = "",
) -> str:
    """The page: nothing in it is loaded from elsewhere. said: what it begins with. again: the section on how to
    make it again."""
    return pages.page(
        "mmalign.stages",
        "report.html",
        recipe=stage_task.recipe,
        verdict=verdict.html(said) if said else "",
        cells=[cell for cell in rows if not finished.layer_of(cell.metric)],
        arms=list(dict.fromkeys(cell.arm for cell in rows)),
        study=len({cell.arm for cell in rows}) > 1,
        layers=[charts.svg(chart) for chart in by_layer(rows)],
        evaluations=[charts.svg(chart) for chart in charts.evaluations(scores, arms)],
        charts=[charts.svg(chart) for chart in charts.curves(scores, arms)],
        premise=[charts.svg(chart) for chart in charts.premise(scores, arms)],
        warnings=told(scores, arms, "warnings"),
        accounts=told(scores, arms, "account"),
        pictures=explored.html(scores, arms),
        stages=_stages(scores),
        reproduce=again,
    )


def _stages(scores: Sequence[Path]) -> list[tuple[str, dict[str, Any]]]:
    """(folder's name, stage.json) of all that the scores rest on."""
    return [(place.name, about) for place, about in unique(ancestors(folder) for folder in scores)]
