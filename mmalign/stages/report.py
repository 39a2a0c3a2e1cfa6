"""The report stage: scores, losses and a few explained images of everything the scores rest on, in one HTML page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from mmalign.errors import RunError
from mmalign.io import files, pages
from mmalign.io.document import Side
from mmalign.pipeline import finished, task
from mmalign.pipeline.task import Task
from mmalign.stages import charts, reproduce, tables, verdict
from mmalign.stages.cells import Cell, as_json, cells
from mmalign.stages.charts import Chart
from mmalign.stages.lineage import ancestors, unique

CEILING = "ceiling"  # of a layer: what can be read there at all


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


def run(stage_task: Task) -> dict[str, Any]:
    scores = [folder for slot, folder in stage_task.reads if slot == "scores"]
    arms = stage_task.arms if len(stage_task.arms) == len(scores) and any(stage_task.arms) else [""] * len(scores)
    rows = cells(scores, arms)
    said = verdict.of(rows)
    again = reproduce.html(stage_task, _stages(scores))
    files.write(stage_task.folder / "report.html", html(stage_task, scores, arms, rows, said, again))
    files.write(stage_task.folder / "report.csv", tables.as_csv(rows, said))
    files.write(stage_task.folder / "report.tex", tables.as_tex(said))
    summary = {"recipe": stage_task.recipe, "cells": [as_json(cell) for cell in rows], "verdict": verdict.as_json(said)}
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
        pictures=_pictures(scores, arms),
        stages=_stages(scores),
        reproduce=again,
    )


def _stages(scores: Sequence[Path]) -> list[tuple[str, dict[str, Any]]]:
    """(folder's name, stage.json) of all that the scores rest on."""
    return [(place.name, about) for place, about in unique(ancestors(folder) for folder in scores)]


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
