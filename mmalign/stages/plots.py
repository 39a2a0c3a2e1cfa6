"""All charts of a report: gathered once, drawn in the page and written as files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from mmalign.io import files, pages
from mmalign.pipeline import finished
from mmalign.stages import charts, curves, draw, labelled, settings
from mmalign.stages.cells import Cell
from mmalign.stages.charts import Chart
from mmalign.stages.lineage import ancestors, unique
from mmalign.stages.measures import Measure
from mmalign.stages.settings import Setting
from mmalign.stages.verdict import Verdict

CEILING = "ceiling"  # of a layer: what can be read there at all
Known = Mapping[tuple[str, str], Measure]  # by benchmark and metric


@dataclass
class Plots:
    """The charts, section by section. arms: in the order of their colours."""

    arms: list[str]
    by_arm: list[Chart]
    setting: Setting | None  # which `by_arm` are over; None: over the arms' names
    layers: list[Chart]
    labels: list[Chart]
    too_large: list[str]  # label stores of which there is no chart
    evaluations: list[Chart]
    training: curves.Curves
    premise: list[Chart]

    @property
    def all(self) -> list[Chart]:
        inner = [*self.evaluations, *self.training.all, *self.premise]
        return [*self.by_arm, *self.layers, *self.labels, *inner]

    @cached_property
    def pictures(self) -> dict[int, tuple[str, bytes]]:
        """{id of a chart: its SVG and PNG}: each is drawn once, for the page and for its files."""
        return {id(chart): draw.picture(chart, self.arms) for chart in self.all}

    def inline(self, charts: Sequence[Chart]) -> list[str]:
        """Some of them as they stand in the page."""
        return [draw.inline(self.pictures[id(chart)][0], chart.title) for chart in charts]


def of(scores: Sequence[Path], arms: Sequence[str], rows: Sequence[Cell], said: Verdict | None, known: Known) -> Plots:
    """Of evaluations and all that they rest on."""
    setting = settings.varied(scores, arms) if said and said.study else None
    labels, too_large = labelled.charts(unique(ancestors(folder) for folder in scores))
    return Plots(
        arms=list(dict.fromkeys(arm.rpartition(" ")[0] for arm in arms)),
        by_arm=settings.charts(said, setting, known) if said else [],
        setting=setting,
        layers=by_layer(rows, known),
        labels=labels,
        too_large=too_large,
        evaluations=charts.evaluations(scores, arms),
        training=curves.curves(scores, arms),
        premise=charts.premise(scores, arms),
    )


def by_layer(rows: Sequence[Cell], known: Known = MappingProxyType({})) -> list[Chart]:
    """A chart for every benchmark that measures the layers one by one (`object_layer_3`), layer 0 being the metric
    without one; dashed: `ceiling_layer_3`, beside each arm's own."""
    values = {(cell.bench, cell.arm, cell.metric): cell.values for cell in rows}
    layered = {key: layer for key in values if (layer := finished.layer_of(key[2]))}
    several = len({(bench, name) for (bench, _, _), (name, _) in layered.items() if name != CEILING}) > len(
        {bench for bench, _, _ in layered}
    )
    of_bench: dict[str, Chart] = {}
    for (bench, arm, metric), (name, number) in layered.items():
        chart = of_bench.setdefault(
            bench,
            Chart(f"{bench}: {name}, by layer", across="layer", unit=known.get((bench, metric), Measure()).axis(name)),
        )
        drawn = chart.dashed if name == CEILING else chart.lines
        seeds = drawn.setdefault(" ".join(filter(None, (arm, name if several and name != CEILING else ""))), {})
        for seed, value in values[bench, arm, metric].items():
            first = values.get((bench, arm, name), {})
            line = seeds.setdefault(seed, [(0.0, first[seed])] if seed in first else [])
            line.append((float(number), value))
            line.sort()
    return [chart for chart in of_bench.values() if chart.lines]


def write(plots: Plots, folder: Path) -> None:
    """Every chart as a PNG and as an SVG file, for papers and slides."""
    for name, chart in draw.named(plots.all).items():
        vector, pixels = plots.pictures[id(chart)]
        files.write(folder / f"{name}.svg", vector)
        files.write(folder / f"{name}.png", pixels)


def by_arm_html(plots: Plots) -> str:
    """The section on the scores by arm, or over the setting in which the arms differ."""
    return pages.page("mmalign.stages", "by_arm.html", charts=plots.inline(plots.by_arm), setting=plots.setting)


def html(plots: Plots) -> str:
    """The sections on layers, labels and training."""
    sections = {
        "layers": plots.layers, "labels": plots.labels, "evaluations": plots.evaluations,
        "losses": plots.training.losses, "course": plots.training.course, "speed": plots.training.speed,
        "premise": plots.premise,
    }  # fmt: skip
    drawn = {name: plots.inline(own) for name, own in sections.items()}
    return pages.page("mmalign.stages", "plots.html", **drawn, too_large=plots.too_large)
