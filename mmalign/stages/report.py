"""The report stage: scores, losses and a few explained images of everything the scores rest on, in one HTML page."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

from mmalign.errors import RunError
from mmalign.io import files, pages
from mmalign.io.document import Side
from mmalign.pipeline import task
from mmalign.pipeline.task import Task
from mmalign.stages import measures, plots, provenance, reproduce, samples, tables, verdict
from mmalign.stages import scores as scored
from mmalign.stages.cells import Cell, as_json, cells
from mmalign.stages.lineage import ancestors, unique


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
        pictures=_pictures(scores, arms),
        stages=provenance.html(_stages(scores), told(scores, arms, "account")),
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
