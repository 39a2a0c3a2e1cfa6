"""What finished stages left for readers: the scores of an evaluation, the table of a report."""

import re
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from mmalign.benchmarks import Score
from mmalign.io import files, seal, sums

EVALUATION = "the folder of a finished evaluation, runs/evaluate-..."
LAYER = re.compile(r"(.+)_layer_([0-9]{1,9})")
REPORT = "the folder of a finished report stage, runs/report-..."


class Evaluated(TypedDict):
    """Of an evaluation's stage.json."""

    metrics: dict[str, dict[str, float]]


class Answer(TypedDict):
    """A line of an evaluation's BENCH.jsonl."""

    id: str
    text: str


class Trained(TypedDict, total=False):
    """Of a training stage's stage.json."""

    account: list[str]
    warnings: list[str]


class Row(TypedDict):
    """One metric of one arm in report.json; difference, interval: against the first arm."""

    arm: str
    bench: str
    metric: str
    values: dict[str, float]  # seed: value
    headline: bool
    mean: float
    spread: float | None
    difference: float | None
    interval: tuple[float, float] | None
    drawn: NotRequired[dict[str, int] | None]  # what was drawn again for it: seeds, pictures; an older mmalign: seeds


class Table(TypedDict):
    """report.json."""

    cells: list[Row]


def layer_of(metric: str) -> tuple[str, int] | None:
    """(what, layer) of a metric that is measured at each layer, such as `object_layer_3`; None of others."""
    named = LAYER.fullmatch(metric)
    return (named[1], int(named[2])) if named else None


def scores(folder: Path) -> dict[str, dict[str, float]]:
    """{benchmark: {metric: value}} of a finished evaluation."""
    about: Evaluated = seal.read(folder / "stage.json", sums.Damaged, EVALUATION, kind=Evaluated)
    return about["metrics"]


def score(folder: Path, bench: str) -> Score:
    """The whole score of one benchmark of a finished evaluation."""
    about: dict[str, Any] = files.read_json(folder / f"{bench}.json", kind=Score, fix=EVALUATION)
    return Score(**about)


def answers(folder: Path, bench: str) -> dict[str, str]:
    """{question id: answer} of one benchmark of a finished evaluation."""
    rows = files.read_jsonl(folder / f"{bench}.jsonl", kind=Answer, fix=EVALUATION)
    return {row["id"]: row["text"] for row in rows}


def report(folder: Path) -> Table:
    """The table of a finished report."""
    table: Table = files.read_json(folder / "report.json", kind=Table, fix=REPORT)
    return table


def account(folder: Path) -> list[str]:
    """What a finished stage left out and cut, and what it warned of: a line each."""
    about: Trained = seal.read(folder / "stage.json", sums.Damaged, "a finished stage's folder", kind=Trained)
    return [*about.get("account", []), *about.get("warnings", [])]
