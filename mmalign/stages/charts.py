"""The charts of a report: what was watched and measured over the steps, and what a chart is."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Required, TypedDict

from mmalign.io import files
from mmalign.pipeline import task
from mmalign.plan.recipe import BESIDE
from mmalign.stages import measures
from mmalign.stages.lineage import ancestors

Line = list[tuple[float, float]]  # (step or layer, value)
Shares = dict[str, float]  # by `layer N` and `refined`


class Read(TypedDict, total=False):
    """Of a look at the premise, by one readout."""

    words: Shares
    right: Shares
    ceiling: Shares


class Measured(TypedDict):
    """A line of evaluations.jsonl."""

    step: int
    scores: dict[str, dict[str, float]]  # benchmark: metric: value


# a line of premise.jsonl: shares of visual tokens by input, the papers' way, in the line itself
Look = TypedDict(
    "Look",
    {"step": Required[int], "words": Shares, "right": Shares, "ceiling": Shares, "same-layer": Read, "lens": Read},
    total=False,
)


@dataclass
class Chart:
    """Lines by name, usually an arm, one for each of its seeds. dashed: what each could be at most."""

    title: str
    across: str = "optimizer step"
    unit: str = ""  # of the values, as the axis says it
    lines: dict[str, dict[str, Line]] = field(default_factory=dict)  # name: {folder or seed: line}
    dashed: dict[str, dict[str, Line]] = field(default_factory=dict)
    level: float | None = None  # a grey line
    intervals: dict[str, dict[float, tuple[float, float]]] = field(default_factory=dict)  # name: {x: its ends}
    places: list[str] = field(default_factory=list)  # what x = 0, 1, ... are, where they are names
    points: bool = False  # a mark at each value
    counted: bool = False  # a histogram
    log: bool = False  # powers of ten, where the values need them
    zero: bool = False  # the axis begins at 0


NEAREST = {"words": "nearest to a word", "right": "nearest to a true word"}  # of visual tokens: the premise's shares
SHARE = "share of visual tokens"
READOUTS = ("input", "same-layer", "lens")
BEFORE, REFINED = "as the adapter makes them", "refined by the shallow layers"


def premise(scores: Sequence[Path], arms: Sequence[str]) -> list[Chart]:
    """BASIC's premise as it was watched, by each readout: over the steps for each arm, and by layer at the last look;
    dashed: what is read so of perfect tokens."""
    charts: dict[tuple[str, ...], Chart] = {}
    for folder, arm_seed in zip(scores, arms, strict=True):
        for place, about in ancestors(folder):
            looks = _looks(place / "premise.jsonl")
            arm, stage = arm_seed.rpartition(" ")[0], about["name"]
            for readout, kind in product(READOUTS, NEAREST):
                reads = [(float(look["step"]), _of(look, readout)) for look in looks if kind in _of(look, readout)]
                if not reads:
                    continue
                what = NEAREST[kind] + ("" if readout == "input" else f", read by {readout}")
                title = f"{' '.join(filter(None, (stage, arm)))}: {what}"
                over = charts.setdefault((stage, arm, kind, readout), Chart(title, unit=SHARE))
                for name, key in ((BEFORE, "layer 0"), (REFINED, "refined")):
                    over.lines.setdefault(name, {})[place.name] = _over(reads, kind, key)
                by = charts.setdefault(
                    (stage, kind, readout),
                    Chart(f"{stage}: {what}, by layer", across="layer", unit=SHARE),
                )
                by.lines.setdefault(arm or stage, {})[place.name] = _by_layer(reads[-1][1][kind])
                if "ceiling" in reads[-1][1]:
                    over.dashed.setdefault(REFINED, {})[place.name] = _over(reads, "ceiling", "refined")
                    by.dashed.setdefault(arm or stage, {})[place.name] = _by_layer(reads[-1][1]["ceiling"])
    return list(charts.values())


def _of(look: dict[str, Any], readout: str) -> dict[str, Shares]:
    own: dict[str, Shares] = look if readout == "input" else look.get(readout, {})
    return own


def _over(reads: Sequence[tuple[float, dict[str, Shares]]], kind: str, key: str) -> Line:
    return [(step, read[kind][key]) for step, read in reads if key in read.get(kind, {})]


def evaluations(scores: Sequence[Path], arms: Sequence[str]) -> list[Chart]:
    """A chart for every benchmark that was measured inside a training stage; grey: its value before the first step."""
    charts: dict[tuple[str, str, str], Chart] = {}
    for folder, arm_seed in zip(scores, arms, strict=True):
        for place, about in ancestors(folder):
            for bench, metric, line in _measured(place / "evaluations.jsonl"):
                title = f"{about['name']}: {bench} {metric}"
                unit = measures.of(measures.cards(place).get(BESIDE + bench), metric).axis(metric)
                chart = charts.setdefault((about["name"], bench, metric), Chart(title, unit=unit))
                chart.lines.setdefault(arm_seed.rpartition(" ")[0] or about["name"], {})[place.name] = line
    for chart in charts.values():
        firsts = [line[0][1] for seeds in chart.lines.values() for line in seeds.values() if line[0][0] == 0]
        chart.level = statistics.fmean(firsts) if firsts else None
    return list(charts.values())


def _measured(place: Path) -> Iterator[tuple[str, str, Line]]:
    lines: dict[tuple[str, str], Line] = defaultdict(list)
    for row in files.read_jsonl(place, kind=Measured, fix=task.AGAIN) if place.exists() else ():
        for bench, metrics in row["scores"].items():
            for metric, value in metrics.items():
                lines[bench, metric].append((float(row["step"]), value))
    return ((bench, metric, line) for (bench, metric), line in lines.items())


def _looks(place: Path) -> list[dict[str, Any]]:
    return files.read_jsonl(place, kind=Look, fix=task.AGAIN) if place.exists() else []


def _by_layer(shares: dict[str, float]) -> Line:
    numbers = [(name.removeprefix("layer "), share) for name, share in shares.items()]
    return [(float(number), share) for number, share in numbers if number.isdecimal()]
