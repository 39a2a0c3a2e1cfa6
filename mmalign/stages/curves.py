"""What training stages logged, as charts over their steps: losses, rates, the gradient, speed and memory."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.io import files
from mmalign.pipeline import task
from mmalign.stages import measures
from mmalign.stages.charts import Chart, Line
from mmalign.stages.lineage import ancestors
from mmalign.training.account import CUTS
from mmalign.training.usage import BUSY, MEMORY

APART = (
    "tokens",
    "images",
    "samples",
    "lr",
    "steps_per_second",
    "norm",
    MEMORY,
    BUSY,
    "step",
    "time",
)  # neither losses nor notes
PARTS = ("vision", "adapter", "llm", "muon")  # that may have a learning rate of their own


@dataclass
class Curves:
    """Of the training stages: losses and what objectives noted; how it went; what it took."""

    losses: list[Chart]
    course: list[Chart]
    speed: list[Chart]

    @property
    def all(self) -> list[Chart]:
        return [*self.losses, *self.course, *self.speed]


def curves(scores: Sequence[Path], arms: Sequence[str]) -> Curves:
    """A chart for every number that training stages logged, an arm's seeds together."""
    groups: dict[str, dict[tuple[str, str], Chart]] = {"losses": {}, "course": {}, "speed": {}}
    for folder, arm_seed in zip(scores, arms, strict=True):
        for place, about in ancestors(folder):
            if not (place / "metrics.jsonl").exists():
                continue
            for group, chart, line in _charts(place, about):
                known = groups[group].setdefault((about["name"], chart.title), chart)
                known.lines.setdefault(arm_seed.rpartition(" ")[0] or about["name"], {})[place.name] = line
    return Curves(**{group: list(charts.values()) for group, charts in groups.items()})


def _charts(place: Path, about: Mapping[str, Any]) -> Iterator[tuple[str, Chart, Line]]:
    """(group, empty chart, line) of every number in a stage's log."""
    rows = files.read_jsonl(place / "metrics.jsonl", kind=dict[str, float], fix=task.AGAIN)
    stage, settings, cards = about["name"], about["what"].get("settings", {}), measures.cards(place)
    for name, line in _losses(rows).items():
        unit = "weighted sum of the terms" if name == "loss" else name
        if name in (settings.get("objectives") or ()):
            unit = measures.of_loss(cards.get(f"objectives.{name}")).unit
        yield "losses", Chart(f"{stage}: {name}", unit=unit, log=True), line
    yield from (("course", chart, line) for chart, line in _course(stage, rows, settings.get("optim") or {}))
    yield from (("speed", chart, line) for chart, line in _speed(stage, rows, settings.get("batch")))


def _losses(rows: Sequence[Mapping[str, float]]) -> dict[str, Line]:
    """The loss, where it is not its only term, every term and what objectives noted."""
    lines: dict[str, Line] = defaultdict(list)
    for row in rows:
        named = {name: value for name, value in row.items() if name not in (*CUTS, *APART)}
        for name, value in named.items():
            if not (name == "loss" and len(named) == 2):
                lines[name].append((row.get("step", 0), value))
    return lines


def _course(stage: str, rows: Sequence[Mapping[str, float]], optim: Mapping[str, Any]) -> Iterator[tuple[Chart, Line]]:
    """The learning rate, that of each part with one of its own, and the gradient's norm before it is clipped."""
    peak = optim.get("lr")
    rates = {part: rate for part in PARTS if (rate := optim.get(f"lr_{part}")) is not None}
    if rate := _line(rows, lambda row: row["lr"]):
        yield Chart(f"{stage}: learning rate", unit="learning rate", zero=True), rate
    for part, own in rates.items() if rate and peak else ():
        scaled = [(step, value * own / peak) for step, value in rate or ()]
        yield Chart(f"{stage}: learning rate of {part}", unit="learning rate", zero=True), scaled
    if norm := _line(rows, lambda row: row["norm"]):
        yield Chart(f"{stage}: norm of the gradient", unit="L2 norm, before clipping", log=True), norm


def _speed(stage: str, rows: Sequence[Mapping[str, float]], batch: Any) -> Iterator[tuple[Chart, Line]]:
    """What was done in a second, and the most memory so far."""
    rates = {
        "trained tokens a second": _line(rows, lambda row: row["tokens"] * row["steps_per_second"]),
        "images a second": _line(rows, lambda row: row["images"] * row["steps_per_second"]),
    }
    if isinstance(batch, int):  # a line of an older mmalign does not count them
        samples = lambda row: row.get("samples", batch) * row["steps_per_second"]  # noqa: E731
        rates["samples a second"] = _line(rows, samples)
    for name, line in rates.items():
        if line:
            yield Chart(f"{stage}: {name}", unit=name.replace(" a second", " / s"), zero=True), line
    if memory := _line(rows, lambda row: row[MEMORY]):
        yield Chart(f"{stage}: peak memory", unit="GiB, the fullest process", zero=True), memory


def _line(rows: Sequence[Mapping[str, float]], value: Any) -> Line:
    """Over the rows that have what the value takes."""
    line: Line = []
    for row in rows:
        try:
            line.append((row.get("step", 0), value(row)))
        except KeyError:
            continue
    return line
