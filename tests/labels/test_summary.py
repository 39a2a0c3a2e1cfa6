"""The page of a label store: bars as high as the counts of `--json`, axes that say what they show, light and dark."""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from mmalign.labels import store
from mmalign.labels.figures import Stats, as_json, stats
from mmalign.labels.store import Store
from mmalign.labels.summary import HIGH, LEFT, RIGHT, TOP, WIDE, WORDS, counts, html, ticks
from tests.labels.test_store import WORDS as LIST
from tests.labels.test_store import build, frame, header

CHARTS = ("best", "kept", "top", "means")


def drawings(summary: Stats) -> dict[str, ElementTree.Element]:
    return {
        (one := ElementTree.fromstring(text)).get("id"): one for text in re.findall(r"(?s)<svg.*?</svg>", html(summary))
    }


def heights(drawing: ElementTree.Element, most: float, side: str = "height", long: float = HIGH) -> list[float]:
    """What the bars say by the axis, whose end is `most`."""
    return [float(bar.get(side)) / long * most for bar in drawing.iter("rect")]


def end(drawing: ElementTree.Element, sideways: bool = False) -> float:
    """The largest number on the axis of counts."""
    last = {"x": [], "y": []}
    for text in drawing.iter("text"):
        if text.get("class") == "tick":
            last["y" if text.get("text-anchor") == "end" else "x"].append(text.text)
    return float(last["x" if sideways else "y"][-1].replace(",", ""))


def small(folder, words, scores, grid) -> Stats:
    """A store of one image."""
    head = header(grid, np.shape(words)[1])
    row = store.pack(head, np.array(words), np.array(scores), frame(grid=grid))
    store.write_shard(folder, 0, head, [row], ["a"], [])
    store.finish(folder, head, LIST, 1)
    return stats(Store(folder))


def filled(found: list[float], told: list[int]) -> None:
    """Bars that were cut off at the end of the axis count nothing."""
    assert found == pytest.approx(told[: len(found)], abs=max(told, default=1) / 1e5)
    assert not any(told[len(found) :])


def test_bars_are_as_high_as_the_json_counts(tmp_path):
    build(tmp_path, images=11, shard=4)
    summary = stats(Store(tmp_path))
    told, drawn = json.loads(json.dumps(as_json(summary))), drawings(summary)
    assert tuple(drawn) == CHARTS
    labelled = round(told["labelled"] * told["patches"])
    best, kept = (heights(drawn[name], end(drawn[name])) for name in ("best", "kept"))
    filled(best, told["best"])
    assert sum(best) == pytest.approx(labelled, abs=0.05)
    filled(kept, told["by_kept"])
    assert sum(kept[1:]) == pytest.approx(labelled, abs=0.05)
    filled(heights(drawn["means"], end(drawn["means"])), told["words_by_mean"])
    filled(
        heights(drawn["top"], end(drawn["top"], True), "width", WIDE - WORDS - RIGHT), [n for _, n, _ in told["top"]]
    )


def test_titles_and_tables_say_the_same_counts(tmp_path):
    build(tmp_path)
    summary = stats(Store(tmp_path))
    page, drawn = html(summary), drawings(summary)
    titles = [title.text for title in drawn["top"].findall("rect/title")]
    assert titles == [f"{word}: {count:,} patches" for word, count, _ in summary.top]
    numbers = [int(cell.replace(",", "")) for cell in re.findall(r'<td class="n">([\d,]+)</td>', page)]
    counted = [summary.best, summary.by_kept, [count for _, count, _ in summary.top], summary.words_by_mean]
    assert numbers == [count for each in counted for count in each if count]


def test_bars_stand_on_their_bins(tmp_path):
    """A patch whose best word has 0.27 stands between 0.27 and 0.28 of the axis across."""
    summary = small(tmp_path, [[1, 2]], [[0.275, 0.1]], (1, 1))
    drawing = drawings(summary)["best"]
    (bar,) = [one for one in drawing.iter("rect") if float(one.get("height"))]
    marks = [one for one in drawing.iter("text") if one.get("class") == "tick" and one.get("text-anchor") == "middle"]
    (start, _), *_, (stop, last) = [(float(one.get("x")), float(one.text)) for one in marks]
    assert (start, stop) == (LEFT, WIDE - RIGHT)
    sides = [float(bar.get("x")), float(bar.get("x")) + float(bar.get("width"))]
    assert [(side - start) / (stop - start) * last for side in sides] == pytest.approx([0.27, 0.28], abs=1e-4)
    assert float(bar.get("y")) + float(bar.get("height")) == pytest.approx(TOP + HIGH)


@pytest.mark.parametrize("name", CHARTS)
def test_axes_and_the_text_for_who_cannot_see_it(tmp_path, name):
    build(tmp_path)
    drawing = drawings(stats(Store(tmp_path)))[name]
    text = {one.get("class"): one.text for one in drawing.iter("text")}
    said = {
        "best": ("similarity (cosine, no unit; bins of 0.01)", "patches (number)"),
        "kept": ("words kept for a patch (number)", "patches (number)"),
        "top": ("patches that keep the word (number)", "word"),
        "means": ("similarity (cosine, no unit; bins of 0.01)", "words (number)"),
    }
    assert (text["across"], text["up"]) == said[name]
    names = drawing.get("aria-labelledby").split()
    parts = [next(one for one in drawing if one.get("id") == each).text for each in names]
    assert drawing.get("role") == "img"
    assert all(parts)
    assert "The most at " in parts[1]


def test_one_patch(tmp_path):
    summary = small(tmp_path, [[1, 2]], [[0.275, 0.1]], (1, 1))
    assert (sum(summary.best), summary.by_kept) == (1, [0, 0, 1])
    drawn = drawings(summary)
    assert [end(drawn[name], name == "top") for name in CHARTS] == [1, 1, 1, 1]
    assert heights(drawn["kept"], 1) == pytest.approx([0, 0, 1])
    assert "The most at similarity 0.27 to 0.28: 1." in html(summary)


def test_no_patch_with_a_word(tmp_path):
    summary = small(tmp_path, [[0, 0], [0, 0]], [[0.0, -0.5], [-0.1, -0.1]], (2, 1))
    assert (summary.labelled, sum(summary.best), summary.by_kept, summary.top) == (0, 0, [2, 0, 0], [])
    drawn = drawings(summary)
    assert not any(heights(drawn["best"], 1))
    assert not list(drawn["top"].iter("rect"))
    assert html(summary).count("There are none.") == 3


def test_words_are_text_and_long_ones_are_cut_beside_their_bar(tmp_path):
    build(tmp_path)
    odd = ["<script>&", "w" * 60]
    summary = replace(stats(Store(tmp_path)), top=[(word, 5, 0.5) for word in odd])
    page, drawing = html(summary), drawings(summary)["top"]
    assert "<script" not in page
    labels = [one.text for one in drawing.iter("text") if one.get("text-anchor") == "end"]
    assert labels == ["<script>&", "w" * 21 + "…"]
    assert f"<td>{odd[1]}</td>" in page


@pytest.mark.parametrize("high", [0.004, 0.1, 0.3, 0.95, 1.0, 6, 7, 59, 61, 4096, 123_456_789])
def test_ticks_are_few_round_and_reach_the_end(high):
    found = ticks(high)
    step = found[1]
    assert found[0] == 0
    assert found[-2] < high <= found[-1] * (1 + 1e-9)
    assert 3 <= len(found) <= 7
    assert float(f"{step:.0e}"[0]) in (1, 2, 5)


def test_counts_have_whole_ticks():
    assert [counts(most) for most in (0, 1, 5)] == [[0, 1], [0, 1], [0, 1, 2, 3, 4, 5]]
    assert all(tick == int(tick) for most in range(6, 2000) for tick in counts(most))


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast of two colours."""

    def light(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, bright = sorted((light(one), light(other)))
    return (bright + 0.05) / (dark + 0.05)


def test_it_can_be_read_on_light_and_dark(tmp_path):
    build(tmp_path)
    themes = re.findall(r":root \{([^}]*)\}", html(stats(Store(tmp_path))))
    assert len(themes) == 2
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for theme in themes:
        colour = dict(re.findall(r"--(\w+): (#\w{6})", theme))
        assert contrast(colour["ink"], colour["paper"]) >= 7
        assert contrast(colour["dim"], colour["paper"]) >= 4.5
        assert contrast(colour["bar"], colour["paper"]) >= 3
