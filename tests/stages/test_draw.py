"""Charts as pictures: SVG in the page's colours, PNG and SVG files, axes with units, and the scale that fits."""

import io
from xml.etree import ElementTree

import pytest
from PIL import Image

from mmalign.labels.figures import Stats
from mmalign.stages import curves, draw, labelled
from mmalign.stages.charts import Chart
from tests.stages.test_report import study

HOSTILE = "a_b%&$#^~\\{} <b>\x1b[31m"


def test_a_chart_in_the_page_has_a_name_and_the_colour_of_the_text():
    chart = Chart(HOSTILE, unit="GiB", lines={HOSTILE: {"1": [(1, 2.0), (2, 3.0)]}, "b": {"1": [(1, 2.5)]}})
    inline = draw.svg(chart)
    root = ElementTree.fromstring(inline)
    assert root.get("aria-label") == "a_b%&$#^~\\{} <b>\\u001b[31m"
    assert "currentColor" in inline
    assert draw.INK not in inline
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"optimizer step", "GiB", "a_b%&$#^~\\{} <b>\\u001b[31m", "b"} <= {*texts}


def test_the_files():
    vector, pixels = draw.picture(Chart("loss", unit="mean per token", lines={"": {"1": [(1, 2.0), (2, 3.0)]}}))
    ElementTree.fromstring(vector)
    assert vector.startswith("<?xml")
    image = Image.open(io.BytesIO(pixels))
    assert image.format == "PNG"
    assert image.size == (round(draw.WIDE * draw.DPI), round(draw.HIGH * draw.DPI))
    assert image.convert("RGB").getpixel((1, 1)) == (255, 255, 255)


def test_files_have_names_that_every_system_takes_none_twice():
    names = [*draw.named([Chart("align: lm"), Chart("Align / lm"), Chart("../\x1b"), Chart("ü" * 9), Chart("x" * 300)])]
    assert names == ["align-lm", "align-lm-2", "chart", "chart-2", "x" * 80]


@pytest.mark.parametrize(
    ("values", "wide"),
    [([1.0, 2.0], False), ([1.0, 21.0], True), ([0.0, 21.0], False), ([-1.0, 90.0], False), ([], False)],
)
def test_powers_of_ten_where_positive_values_lie_far_apart(values, wide):
    assert draw.wide(values) is wide


@pytest.mark.parametrize("xs", [[1.0, 3.0, 10.0], [0.0, 0.1, 3.0], [0.0], [-1.0, 1.0], [2.0, 2.5]])
def test_every_setting_has_its_tick(xs):
    drawn = draw.svg(Chart("x", points=True, lines={"a": {"": [(x, x) for x in xs]}}))
    assert all(f">{x:g}</text>" in drawn for x in xs if x >= 0)


def test_what_training_logged(tmp_path):
    """A chart for each number, with its unit; a part's own rate in the proportion of the peaks."""
    scores, names = study(tmp_path, {"base": [50.0]})
    (place,) = tmp_path.glob("train-*")
    about = place / "stage.json"
    about.write_text(about.read_text().replace('"what": {"settings": {', '"what": {"settings": {"batch": 8, "optim": '
                                               '{"lr": 0.002, "lr_llm": 0.001}, '))  # fmt: skip
    line = '{"step": 10, "loss": 3.0, "lm": 1.0, "pairs": 7, "cut_tokens": 3, "tokens": 50, "images": 4, "norm": 2.0, '
    (place / "metrics.jsonl").write_text(
        line + '"lr": 0.001, "steps_per_second": 2, "peak_memory_gib": 1.5, "time": 9}\n'
    )
    drawn = curves.curves(scores, names)
    told = {chart.title: (chart.unit, chart.lines["base"][place.name]) for chart in drawn.all}
    assert told == {
        "align: loss": ("weighted sum of the terms", [(10, 3.0)]),
        "align: lm": ("", [(10, 1.0)]),  # its card is not there
        "align: pairs": ("pairs", [(10, 7)]),
        "align: learning rate": ("learning rate", [(10, 0.001)]),
        "align: learning rate of llm": ("learning rate", [(10, 0.0005)]),
        "align: norm of the gradient": ("L2 norm, before clipping", [(10, 2.0)]),
        "align: trained tokens a second": ("trained tokens / s", [(10, 100)]),
        "align: images a second": ("images / s", [(10, 8)]),
        "align: samples a second": ("samples / s", [(10, 16)]),
        "align: peak memory": ("GiB, the fullest process", [(10, 1.5)]),
    }
    assert [chart.title for chart in drawn.speed if not chart.zero] == []


def test_a_log_of_an_older_mmalign_has_the_charts_it_can_have(tmp_path):
    drawn = curves.curves(*study(tmp_path, {"base": [50.0]}))  # without memory, speed and norm
    assert [chart.title for chart in drawn.all] == ["align: lm", "align: learning rate"]


def test_what_the_labels_are():
    best = [0] * 100
    best[20:22] = [3, 5]
    stats = Stats(2, 0, 9, 8 / 9, 1.5, 7, 0.5, 0.2, [], best, [1, 6, 2], [], [0.1], [0] * 10 + [4] + [0] * 89)
    charts = {chart.title: chart for chart in labelled.of(stats, "label", "label 0cd4")}
    (line,) = charts["label: patches by their best word"].lines["label 0cd4"].values()
    assert line == [
        (pytest.approx(0.195), 0),
        (pytest.approx(0.205), 3),
        (pytest.approx(0.215), 5),
        (pytest.approx(0.225), 0),
    ]
    assert charts["label: patches by the words they keep"].lines["label 0cd4"] == {"": [(0, 1), (1, 6), (2, 2)]}
    assert sum(value for _, value in charts["label: words by their mean similarity"].lines["label 0cd4"][""]) == 4
    assert all(draw.svg(chart).startswith("<svg") for chart in charts.values())
