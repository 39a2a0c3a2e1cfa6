"""The scores of a report: benchmark by benchmark, headlines first, each metric with its meaning, unit and direction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mmalign.io import pages
from mmalign.pipeline import finished
from mmalign.stages.cells import Cell
from mmalign.stages.measures import Measure


@dataclass
class Metric:
    """One metric in all arms."""

    name: str
    measure: Measure
    cells: list[Cell] = field(default_factory=list)

    @property
    def digits(self) -> int:
        """Behind the point: 4 where all values are fractions."""
        return 4 if all(abs(cell.mean) <= 1 for cell in self.cells) else 2

    def number(self, value: float | None, signed: bool = False) -> str:
        return "" if value is None else f"{value:{'+' if signed else ''}.{self.digits}f}"


@dataclass
class Group:
    """A benchmark, or a training stage with its last losses. summary: what it is; empty where nobody says."""

    name: str
    summary: str
    headlines: list[Metric] = field(default_factory=list)
    others: list[Metric] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Of the metrics that are folded."""
        count = len(self.others)
        kind = "other metric" if self.headlines else "loss" if self._losses else "metric"
        plural = "es" if kind == "loss" else "s"
        return f"{count} {kind}{plural if count != 1 else ''}"

    @property
    def _losses(self) -> bool:
        return all(metric.name.endswith(" loss") for metric in self.others)


def groups(rows: Sequence[Cell], known: Mapping[tuple[str, str], Measure], summaries: Mapping[str, str]) -> list[Group]:
    """In the order of the cells; what is measured layer by layer is plotted, and no part of it."""
    named: dict[str, Group] = {}
    metrics: dict[tuple[str, str], Metric] = {}
    for cell in rows:
        if finished.layer_of(cell.metric):
            continue
        group = named.setdefault(cell.bench, Group(cell.bench, summaries.get(cell.bench, "")))
        key = cell.bench, cell.metric
        if key not in metrics:
            metrics[key] = Metric(cell.metric, known.get(key, Measure()))
            (group.headlines if cell.headline else group.others).append(metrics[key])
        metrics[key].cells.append(cell)
    return list(named.values())


def html(found: Sequence[Group], arms: Sequence[str]) -> str:
    """The section of the page. arms: the first is what the others are compared with."""
    spread = any(cell.spread is not None for group in found for one in _all(group) for cell in one.cells)
    values = {"study": len(arms) > 1, "spread": spread, "first": arms[0] if arms else ""}
    return pages.page("mmalign.stages", "scores.html", groups=found, **values)


def _all(group: Group) -> list[Metric]:
    return [*group.headlines, *group.others]
