"""A label store's numbers as a page: histograms of patches and of words, and the words used most as bars.

Lengths are pixels of a drawing WIDE across, y from its top down, as in SVG.
"""

import math
from dataclasses import dataclass, field

from mmalign.io import pages
from mmalign.labels.figures import SIMILAR, Stats

WIDE, TOP, RIGHT, BOTTOM = 720, 14, 84, 46
LEFT, WORDS = 104, 176  # left of the axis: counts, up to a billion; words
HIGH, ROW = 180, 20  # of a histogram; of a word's line
SIMILARITY = "similarity (cosine, no unit; bins of 0.01)"
SHOWN = 22  # letters of a word beside its bar; all of them are in its title and in the table


@dataclass
class Bar:
    """One bar: where it is drawn, and `what` it counts."""

    what: str
    count: int
    x: float
    y: float
    width: float
    height: float


@dataclass
class Tick:
    at: float
    text: str


@dataclass
class Chart:
    """Bars with both axes. what, counted: heads of its table, of the bars and of their counts."""

    name: str
    title: str
    told: str  # in words, for who does not see it
    across: str
    up: str
    what: str
    counted: str
    left: float = LEFT
    high: float = HIGH  # of the plot
    sideways: bool = False
    bars: list[Bar] = field(default_factory=list)
    across_ticks: list[Tick] = field(default_factory=list)
    up_ticks: list[Tick] = field(default_factory=list)

    @property
    def rows(self) -> list[Bar]:
        """The bars that count anything."""
        return [bar for bar in self.bars if bar.count]

    @property
    def description(self) -> str:
        """What it shows and where it is highest."""
        if not self.rows:
            return f"{self.told} There are none."
        most = max(self.rows, key=lambda bar: bar.count)
        return f"{self.told} The most at {self.what} {most.what}: {most.count:,}."


def html(summary: Stats) -> str:
    """A page that needs nothing else, for light and dark screens; its numbers are those of `figures.as_json`."""
    charts = [_best(summary), _kept(summary), _top(summary), _means(summary)]
    values = {"wide": WIDE, "top": TOP, "right": RIGHT, "bottom": BOTTOM, "shown": SHOWN}
    return pages.page("mmalign.labels", "summary.html", s=summary, charts=charts, **values)


def ticks(high: float) -> list[float]:
    """Round numbers from 0 to `high` or the next one beyond: at most six steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(high / 6))
    step = next(power * n for n in (1, 2, 5, 10) if high / (power * n) <= 6 + 1e-9)
    return [round(step * n, 9) for n in range(math.ceil(high / step - 1e-9) + 1)]


def counts(most: int) -> list[float]:
    """The ticks of an axis of whole numbers up to `most`."""
    return ticks(most) if most > 5 else list(range(max(most, 1) + 1))


def _best(s: Stats) -> Chart:
    told = "Patches with a word, by the similarity of their best word."
    chart = Chart(
        "best", "Similarity of each patch's best word", told, SIMILARITY, "patches (number)", "similarity", "patches"
    )
    return _similar(chart, s.best)


def _means(s: Stats) -> Chart:
    told = "Words that some patch has, by their mean similarity to the patches that have them."
    chart = Chart(
        "means", "Mean similarity of each used word", told, SIMILARITY, "words (number)", "similarity", "words"
    )
    return _similar(chart, s.words_by_mean)


def _similar(chart: Chart, by_bin: list[int]) -> Chart:
    """A histogram over bins of similarities, from 0 to beyond the last that is filled."""
    last = max((n for n, count in enumerate(by_bin) if count), default=0)
    marks = ticks(max(0.1, SIMILAR[last + 1]))
    shown = by_bin[: round(marks[-1] * (len(SIMILAR) - 1))]
    whats = [f"{SIMILAR[n]:.2f} to {SIMILAR[n + 1]:.2f}" for n in range(len(shown))]
    return _standing(chart, shown, whats, [(mark / marks[-1], f"{mark:g}") for mark in marks])


def _kept(s: Stats) -> Chart:
    told = "Patches by the number of words kept for each; 0: no word is above zero, or padding."
    across, many = "words kept for a patch (number)", len(s.by_kept)
    chart = Chart("kept", "Words kept a patch", told, across, "patches (number)", "words", "patches")
    places = [((number + 0.5) / many, str(number)) for number in range(0, many, math.ceil(many / 20))]
    return _standing(chart, s.by_kept, [str(number) for number in range(many)], places)


def _standing(chart: Chart, by_bin: list[int], whats: list[str], places: list[tuple[float, str]]) -> Chart:
    """A histogram. places: of the marks across, (share of the axis, text)."""
    marks, wide = counts(max(by_bin)), WIDE - LEFT - RIGHT
    bar = wide / len(by_bin)
    for number, (what, count) in enumerate(zip(whats, by_bin, strict=True)):
        height = HIGH * count / marks[-1]
        chart.bars.append(Bar(what, count, LEFT + bar * number, TOP + HIGH - height, bar, height))
    chart.across_ticks = [Tick(LEFT + wide * share, text) for share, text in places]
    chart.up_ticks = [Tick(TOP + HIGH * (1 - mark / marks[-1]), f"{mark:,.0f}") for mark in marks]
    return chart


def _top(s: Stats) -> Chart:
    """The words used most, a line each."""
    told, across = f"Words that most patches have, of {s.words:,} in the list.", "patches that keep the word (number)"
    chart = Chart("top", "Most frequent words", told, across, "word", "word", "patches", WORDS, sideways=True)
    marks, wide = counts(max((count for _, count, _ in s.top), default=0)), WIDE - WORDS - RIGHT
    for row, (word, count, _) in enumerate(s.top):
        chart.bars.append(Bar(word, count, WORDS, TOP + ROW * row, wide * count / marks[-1], ROW))
    chart.high = ROW * max(1, len(chart.bars))
    chart.across_ticks = [Tick(WORDS + wide * mark / marks[-1], f"{mark:,.0f}") for mark in marks]
    chart.up_ticks = [Tick(bar.y + ROW / 2, bar.what) for bar in chart.bars]
    return chart
