"""The charts of a report as pictures: SVG for the page, which takes its colours, and SVG and PNG files for a paper."""

import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from mmalign.io.visible import one_line
from mmalign.stages.charts import Chart, Line

INK = "#010101"  # of texts and axes: in the page, the colour of its text
WIDE, HIGH, ENTRY = 4.4, 2.4, 0.17  # inches: of a chart, and of a line of its legend
COLUMNS = 3  # of a legend
DPI = 200  # of the files
SPREAD = 20.0  # the largest of positive values over the smallest: from there on, a scale of powers of ten
PLAIN = {"parse_math": False}  # a name with $ in it is no formula
STYLE = {
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "svg.fonttype": "none", "svg.hashsalt": "mmalign", "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


def svg(chart: Chart, arms: Sequence[str] = ()) -> str:
    """A chart as inline SVG, see `picture` and `inline`."""
    return inline(picture(chart, arms)[0], chart.title)


def inline(text: str, title: str) -> str:
    """An SVG file as a part of the page, in the colours of its text, with a name for who does not see it."""
    name = escape(one_line(title), quote=True)
    body = text[text.index("<svg") :].replace(INK, "currentColor")
    return f'<svg role="img" aria-label="{name}" {body.removeprefix("<svg ")}'


def picture(chart: Chart, arms: Sequence[str] = ()) -> tuple[str, bytes]:
    """A chart as an SVG and a PNG file: the seeds of an arm thin, their mean thick.

    arms: in the order of their colours.
    """
    import matplotlib
    from matplotlib.figure import Figure

    vector, pixels = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(STYLE):
        names = [*chart.lines] if len(chart.lines) > 1 else []
        figure = Figure(figsize=(WIDE, HIGH + ENTRY * -(-len(names) // COLUMNS)), layout="constrained")
        axes = figure.subplots()
        _lines(axes, chart, arms)
        _labels(axes, chart)
        if names:
            columns = min(COLUMNS, len(names))
            legend = figure.legend(loc="outside lower center", ncols=columns, fontsize=7, frameon=False)
            for text in legend.get_texts():
                text.set(**PLAIN)
        figure.savefig(
            vector, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
        figure.set_layout_engine("none")  # it is laid out now
        figure.savefig(pixels, format="png", dpi=DPI, facecolor="white")
    return vector.getvalue().decode("utf-8"), pixels.getvalue()


def _lines(axes: Any, chart: Chart, arms: Sequence[str]) -> None:
    """Thin lines for seeds, thick ones for means; dashed what could be at most; bars for intervals."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys((*filter(None, arms), *chart.lines)))}
    for name, seeds in chart.lines.items():
        color = f"C{numbers[name] % 10}"
        if chart.counted:
            xs, counts = _columns(mean(seeds.values()))
            axes.bar(xs, counts, width=0.9 * (xs[1] - xs[0] if len(xs) > 1 else 1), color=color, label=one_line(name))
            continue
        for one in seeds.values() if len(seeds) > 1 else ():
            axes.plot(*_columns(one), color=color, linewidth=0.5, alpha=0.35)
        line = mean(seeds.values())
        mark = {"marker": "o", "markersize": 3.5} if chart.points or len(line) == 1 else {}
        joined = {"linestyle": "none"} if chart.places else {}
        axes.plot(*_columns(line), color=color, label=one_line(name), linewidth=1.2, **mark, **joined)
        if most := chart.dashed.get(name):
            axes.plot(*_columns(mean(most.values())), color=color, linewidth=0.8, linestyle="--")
        for x, (low, high) in chart.intervals.get(name, {}).items():
            axes.plot([x, x], [low, high], color=color, linewidth=1.2)
    if chart.level is not None:
        axes.axhline(chart.level, color="0.6", linewidth=1.2, zorder=0)


def _labels(axes: Any, chart: Chart) -> None:
    """Title, both axes with their units, and scales that fit the values."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(one_line(chart.title), fontsize=9, **PLAIN)
    axes.set_xlabel(one_line(chart.across), fontsize=8, **PLAIN)
    axes.set_ylabel(one_line(chart.unit), fontsize=8, **PLAIN)
    axes.tick_params(labelsize=7)
    lines = [line for seeds in chart.lines.values() for line in seeds.values()]
    if chart.log and wide(value for line in lines for _, value in line):
        axes.set_yscale("log")
    if chart.places:
        axes.set_xticks(range(len(chart.places)), [one_line(name) for name in chart.places], rotation=30, ha="right")
        for text in axes.get_xticklabels():
            text.set(**PLAIN)
        axes.margins(x=0.1)
    elif chart.points:
        _settings(axes, sorted({x for line in lines for x, _ in line}))
    elif not chart.counted:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if chart.zero:
        axes.set_ylim(bottom=0)


def _settings(axes: Any, xs: Sequence[float]) -> None:
    """An axis with a tick at every value, by powers of ten where they are far apart; 0 stands beside these."""
    positive = [x for x in xs if x > 0]
    if xs[0] > 0 and xs[-1] / xs[0] >= SPREAD / 2:
        axes.set_xscale("log")
    elif xs[0] == 0 and positive and xs[-1] / positive[0] >= SPREAD / 2:
        axes.set_xscale("symlog", linthresh=positive[0])
    axes.set_xticks(xs, [f"{x:g}" for x in xs])
    axes.set_xticks([], minor=True)


def wide(values: Iterable[float]) -> bool:
    """Whether positive values are so far apart that only powers of ten show them all."""
    known = list(values)
    return bool(known) and min(known) > 0 and max(known) / min(known) > SPREAD


def _columns(line: Line) -> tuple[Sequence[float], Sequence[float]]:
    return [x for x, _ in line], [value for _, value in line]


def mean(seeds: Iterable[Line]) -> Line:
    """The mean of several lines, at the steps that all of them have."""
    values = [dict(line) for line in seeds]
    shared = [step for step in values[0] if all(step in line for line in values)]
    return [(step, statistics.fmean(line[step] for line in values)) for step in shared]


def named(charts: Iterable[Chart]) -> Mapping[str, Chart]:
    """{name of a file, without its ending: chart}: the titles in letters that every system takes, none twice."""
    names: dict[str, Chart] = {}
    for chart in charts:
        letters = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in chart.title)
        base = "-".join(filter(None, letters.lower().split("-")))[:80] or "chart"
        number = next(n for n in range(1, len(names) + 2) if (base if n == 1 else f"{base}-{n}") not in names)
        names[base if number == 1 else f"{base}-{number}"] = chart
    return names
