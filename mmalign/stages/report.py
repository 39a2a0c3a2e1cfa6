"""The report stage: scores, losses and a few explained images of everything the scores rest on, in one HTML page."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmalign.io import files, pages
from mmalign.pipeline.task import Task
from mmalign.stages import explored, measures, plots, provenance, reproduce, samples, tables, verdict
from mmalign.stages import scores as scored
from mmalign.stages.cells import Cell, as_json, cells
from mmalign.stages.lineage import ancestors, unique


def run(stage_task: Task) -> dict[str, Any]:
    scores = [folder for slot, folder in stage_task.reads if slot == "scores"]
    arms = stage_task.arms if len(stage_task.arms) == len(scores) and any(stage_task.arms) else [""] * len(scores)
    rows = cells(scores, arms)
    said = verdict.of(rows)
    known, stages = measures.known(scores, arms), _stages(scores)
    drawn = plots.of(scores, arms, rows, said, known)
    again = reproduce.html(stage_task, stages)
    files.write(stage_task.folder / "report.html", html(stage_task, scores, arms, rows, said, again, drawn))
    files.write(stage_task.folder / "report.csv", tables.as_csv(rows, said))
    files.write(stage_task.folder / "report.tex", tables.as_tex(said))
    plots.write(drawn, stage_task.folder / "figures")
    summary = {
        "recipe": stage_task.recipe,
        "cells": [as_json(cell) for cell in rows],
        "verdict": verdict.as_json(said),
        "measures": [{"bench": bench, "metric": metric, **asdict(one)} for (bench, metric), one in known.items()],
        "stages": provenance.as_json(stages),
    }
    files.write_json(stage_task.folder / "report.json", summary)
    return {"metrics": {}, "html": f"{stage_task.folder.name}/report.html"}


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
    drawn: plots.Plots | None = None,
) -> str:
    """The page: nothing in it is loaded from elsewhere. said: what it begins with. again: the section on how to
    make it again. drawn: its charts, where they are known already."""
    known, names = measures.known(scores, arms), list(dict.fromkeys(cell.arm for cell in rows))
    groups = scored.groups(rows, known, measures.summaries(scores, arms))
    drawn = drawn or plots.of(scores, arms, rows, said, known)
    return pages.page(
        "mmalign.stages",
        "report.html",
        recipe=stage_task.recipe,
        verdict=verdict.html(said) if said else "",
        scores=scored.html(groups, names),
        by_arm=plots.by_arm_html(drawn),
        samples=samples.html(samples.shown(scores, arms), len(names) > 1),
        plots=plots.html(drawn),
        warnings=told(scores, arms, "warnings"),
        pictures=explored.html(scores, arms),
        stages=provenance.html(_stages(scores), told(scores, arms, "account")),
        reproduce=again,
    )


def _stages(scores: Sequence[Path]) -> list[tuple[str, dict[str, Any]]]:
    """(folder's name, stage.json) of all that the scores rest on."""
    return [(place.name, about) for place, about in unique(ancestors(folder) for folder in scores)]
