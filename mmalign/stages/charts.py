"""The charts of a report: what was logged, watched and measured over the steps, as inline SVG."""

import io
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Required, TypedDict

from mmalign.io import files
from mmalign.io.visible import one_line
from mmalign.pipeline import task
from mmalign.stages.lineage import ancestors
from mmalign.training.account import CUTS

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
    across: str = "step"
    lines: dict[str, dict[str, Line]] = field(default_factory=dict)  # name: {folder or seed: line}
    dashed: dict[str, dict[str, Line]] = field(default_factory=dict)
    level: float | None = None  # a grey line


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


# in the log, but no curve of the report
SHOWN = (
    "tokens",
    "images",
    "samples",
    "lr",
    "steps_per_second",
    "norm",
    "step",
    "time",
    "peak_memory_gib",
    "gpu_percent",
)


def _lines(place: Path) -> dict[str, Line]:
    lines: dict[str, Line] = defaultdict(list)
    for row in files.read_jsonl(place, kind=dict[str, float], fix=task.AGAIN):
        curves = {name: value for name, value in row.items() if name not in (*CUTS, *SHOWN)}
        if len(curves) <= 2:  # the loss is that of its only term
            curves.pop("loss", None)
        for name, value in curves.items():
            lines[name].append((row.get("step", 0), value))
    return lines


NEAREST = {"words": "nearest to a word", "right": "nearest to a true word"}  # of visual tokens: the premise's shares
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
                over = charts.setdefault((stage, arm, kind, readout), Chart(title))
                for name, key in ((BEFORE, "layer 0"), (REFINED, "refined")):
                    over.lines.setdefault(name, {})[place.name] = _over(reads, kind, key)
                by = charts.setdefault((stage, kind, readout), Chart(f"{stage}: {what}, by layer", across="layer"))
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
                chart = charts.setdefault((about["name"], bench, metric), Chart(title))
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
        if most := chart.dashed.get(arm):
            axes.plot(*zip(*_mean(most.values()), strict=True), color=f"C{number}", linewidth=0.8, linestyle="--")
    if chart.level is not None:
        axes.axhline(chart.level, color="0.6", linewidth=1.2, zorder=0)
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
