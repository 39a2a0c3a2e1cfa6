"""What the label stores below a report hold, as histograms: the numbers of `mmalign labels stats` (SEA's figure 6)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmalign.labels import figures
from mmalign.labels.store import Store
from mmalign.stages.charts import Chart

MOST = 200_000_000  # labels that are read for a page: seconds; larger stores have a command of their own


def charts(stages: Sequence[tuple[Path, dict[str, Any]]]) -> tuple[list[Chart], list[str]]:
    """Histograms of every label stage among some stages; and a line for each store that is too large for it."""
    drawn: list[Chart] = []
    told: list[str] = []
    for place, about in stages:
        if about["kind"] != "label" or not (place / "labels" / "header.json").exists():
            continue
        store = Store(place / "labels")
        rows, columns = store.header.grid
        count = len(store) * rows * columns * store.header.keep
        if not len(store):
            continue
        if count > MOST:
            told.append(f"{place.name} has room for {count:,} labels: mmalign labels stats {place.name}")
            continue
        name = f"{about['name']} {place.name.rpartition('-')[2]}"
        drawn += of(figures.stats(store), about["name"], name)
    return drawn, told


def of(stats: figures.Stats, title: str, name: str) -> list[Chart]:
    """Patches by the similarity of their best word, patches by the words they keep, words by their mean similarity."""
    middles = [(low + high) / 2 for low, high in zip(figures.SIMILAR, figures.SIMILAR[1:], strict=False)]
    similarity = "similarity (cosine, bins of 0.01)"
    kept = [(float(number), float(count)) for number, count in enumerate(stats.by_kept)]
    histograms = (
        (f"{title}: patches by their best word", similarity, "patches", _within(middles, stats.best)),
        (f"{title}: patches by the words they keep", "words kept", "patches", kept),
        (f"{title}: words by their mean similarity", similarity, "words", _within(middles, stats.words_by_mean)),
    )
    return [
        Chart(what, across, unit, {name: {"": line}}, counted=True, zero=True)
        for what, across, unit, line in histograms
    ]


def _within(middles: Sequence[float], counts: Sequence[int]) -> list[tuple[float, float]]:
    """The bins from the first to the last that hold anything, and one more on each side."""
    held = [number for number, count in enumerate(counts) if count]
    if not held:
        return [(float(middles[0]), 0.0)]
    ends = max(held[0] - 1, 0), min(held[-1] + 2, len(counts))
    return [(float(middles[number]), float(counts[number])) for number in range(*ends)]
