"""The report stage: scores, losses and a few explained images of everything the scores rest on, in one HTML page."""

import io
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Required, TypedDict

from mmalign.errors import RunError
from mmalign.io import document, files, pages
from mmalign.io.document import Side
from mmalign.io.visible import one_line
from mmalign.pipeline import task
from mmalign.pipeline.task import Task
from mmalign.training.account import CUTS

RESAMPLES = 10_000
Line = list[tuple[float, float]]  # (step, value)


class Evaluated(TypedDict):
    """Of an evaluation's stage.json, beside what every stage has."""

    metrics: dict[str, dict[str, float]]
    headlines: dict[str, str]  # benchmark: its metric


class Look(TypedDict, total=False):
    """A line of premise.jsonl: shares of visual tokens, by `layer N` and `refined`."""

    step: Required[int]
    words: dict[str, float]
    right: dict[str, float]
    ceiling: dict[str, float]


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


@dataclass
class Chart:
    """One loss term of one training stage; an arm has a line for each of its seeds."""

    title: str
    across: str = "step"
    lines: dict[str, dict[str, Line]] = field(default_factory=dict)  # arm: {folder: line}


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
    """A chart for every loss term of every training stage."""
    charts: dict[tuple[str, str], Chart] = {}
    for folder, arm_seed in zip(scores, arms, strict=True):
        for place, about in ancestors(folder):
            if not (place / "metrics.jsonl").exists():
                continue
            for term, line in _lines(place / "metrics.jsonl").items():
                chart = charts.setdefault((about["name"], term), Chart(f"{about['name']}: {term}"))
                chart.lines.setdefault(arm_seed.rpartition(" ")[0] or about["name"], {})[place.name] = line
    return list(charts.values())


SHOWN = ("tokens", "images", "lr", "steps_per_second", "norm", "step")  # in the log, but no curve of the report


def _lines(place: Path) -> dict[str, Line]:
    lines: dict[str, Line] = defaultdict(list)
    for row in files.read_jsonl(place, kind=dict[str, float], fix=task.AGAIN):
        row = {name: value for name, value in row.items() if name not in CUTS}
        for name, value in row.items():
            if name not in SHOWN and not (name == "loss" and len(row) - len(SHOWN) <= 2):
                lines[name].append((row.get("step", 0), value))
    return lines


# of visual tokens: the premise's shares
NEAREST = {
    "words": "nearest to a word",
    "right": "nearest to a true word",
    "ceiling": "perfect tokens, nearest to the word they are",
}
BEFORE, REFINED = "as the adapter makes them", "refined by the shallow layers"


def premise(scores: Sequence[Path], arms: Sequence[str]) -> list[Chart]:
    """BASIC's premise as it was watched: over the steps for each arm, and by layer at the last look."""
    charts: dict[tuple[str, ...], Chart] = {}
    for folder, arm_seed in zip(scores, arms, strict=True):
        for place, about in ancestors(folder):
            looks = _looks(place / "premise.jsonl")
            arm, stage = arm_seed.rpartition(" ")[0], about["name"]
            for kind in [kind for kind in NEAREST if looks and kind in looks[-1]]:
                title = f"{' '.join(filter(None, (stage, arm)))}: {NEAREST[kind]}"
                over = charts.setdefault((stage, arm, kind), Chart(title))
                for name, key in ((BEFORE, "layer 0"), (REFINED, "refined")):
                    line = [(float(look["step"]), look[kind][key]) for look in looks if key in look.get(kind, {})]
                    over.lines.setdefault(name, {})[place.name] = line
                by = charts.setdefault((stage, kind), Chart(f"{stage}: {NEAREST[kind]}, by layer", across="layer"))
                by.lines.setdefault(arm or stage, {})[place.name] = _by_layer(looks[-1][kind])
    return list(charts.values())


def _looks(place: Path) -> list[dict[str, Any]]:
    return files.read_jsonl(place, kind=Look, fix=task.AGAIN) if place.exists() else []


def _by_layer(shares: dict[str, float]) -> Line:
    numbers = [(name.removeprefix("layer "), share) for name, share in shares.items()]
    return [(float(number), share) for number, share in numbers if number.isdecimal()]


def told(scores: Sequence[Path], arms: Sequence[str], key: str) -> list[tuple[str, str]]:
    """(stage and arm, what it says) of all that the scores rest on. key: `warnings`, or `account`: left out and cut."""
    return list(dict.fromkeys(
        (" ".join(filter(None, (about["name"], arm))), text)
        for folder, arm in zip(scores, arms, strict=True)
        for _, about in ancestors(folder)
        for text in about.get(key, [])
    ))  # fmt: skip


def svg(chart: Chart) -> str:
    """A chart as inline SVG: the seeds of an arm thin, their mean thick."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(4.2, 2.4))
    plain = {"parse_math": False}  # a name with $ in it is no formula
    for number, (arm, seeds) in enumerate(chart.lines.items()):
        for one in seeds.values() if len(seeds) > 1 else ():
            axes.plot(*zip(*one, strict=True), color=f"C{number}", linewidth=0.5, alpha=0.35)
        axes.plot(*zip(*_mean(seeds.values()), strict=True), color=f"C{number}", label=one_line(arm), linewidth=1.2)
    axes.set_title(one_line(chart.title), fontsize=9, **plain)
    axes.set_xlabel(chart.across, fontsize=8)
    axes.tick_params(labelsize=7)
    if len(chart.lines) > 1:
        for text in axes.legend(fontsize=6).get_texts():
            text.set(**plain)
    figure.tight_layout()
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return out.getvalue()[out.getvalue().index("<svg") :]


def _mean(seeds: Iterable[Line]) -> Line:
    """The mean of several lines, at the steps that all of them have."""
    values = [dict(line) for line in seeds]
    shared = [step for step in values[0] if all(step in line for line in values)]
    return [(step, statistics.fmean(line[step] for line in values)) for step in shared]


def html(stage_task: Task, scores: Sequence[Path], arms: Sequence[str], rows: Sequence[Cell]) -> str:
    """The page: nothing in it is loaded from elsewhere."""
    stages = [(place.name, about) for place, about in _unique(ancestors(folder) for folder in scores)]
    return pages.page(
        "mmalign.stages",
        "report.html",
        recipe=stage_task.recipe,
        cells=rows,
        arms=list(dict.fromkeys(cell.arm for cell in rows)),
        study=len({cell.arm for cell in rows}) > 1,
        charts=[svg(chart) for chart in curves(scores, arms)],
        premise=[svg(chart) for chart in premise(scores, arms)],
        warnings=told(scores, arms, "warnings"),
        accounts=told(scores, arms, "account"),
        pictures=_pictures(scores, arms),
        stages=stages,
    )


def _unique(walks: Iterable[Iterator[tuple[Path, dict[str, Any]]]]) -> list[tuple[Path, dict[str, Any]]]:
    return list({place: (place, about) for walk in walks for place, about in walk}.values())


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
