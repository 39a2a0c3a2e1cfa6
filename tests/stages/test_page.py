"""Every number in the report's tables is report.json's, at the digits it is printed with; and the page's outline."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mmalign.stages import scores
from mmalign.stages.cells import Cell
from mmalign.stages.measures import Measure
from tests.stages.test_report import ACCURACY, study
from tests.stages.test_verdict import ANSWERS, ODD, asked_study, made

BOTH = {"seeds": (study, ACCURACY), "questions": (asked_study, ANSWERS), "one": (study, {"only": [50.0]})}
NUMBER = re.compile(r"[-+]?\d+\.\d+")


class Tables(HTMLParser):
    """The rows of every table, by the section they stand in."""

    def __init__(self) -> None:
        super().__init__()
        self.section, self.rows, self.cell = "", {}, None
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "section":
            self.section = dict(attrs)["aria-labelledby"]
        if tag == "tr":
            self.rows.setdefault(self.section, []).append([])
        if tag in ("td", "th"):
            self.cell = ""

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th") and self.cell is not None:
            self.rows[self.section][-1].append(self.cell.strip())
            self.cell = None
        if tag == "section":
            self.section = ""


@pytest.fixture(params=BOTH)
def report(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[dict, str, Path]:
    make, arms = BOTH[request.param]
    told, page = made(tmp_path / "report", *make(tmp_path / "runs", arms))
    return told, page, tmp_path / "report"


def tables(page: str) -> dict[str, list[list[str]]]:
    parser = Tables()
    parser.feed(page)
    return parser.rows


def numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        return [one for inner in value.values() for one in numbers(inner)]
    if isinstance(value, list):
        return [one for inner in value for one in numbers(inner)]
    return [float(value)] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def printed(text: str, values: list[float]) -> bool:
    digits = len(text.partition(".")[2])
    return any(f"{value:.{digits}f}" == text.lstrip("+") for value in values)


def test_every_number_of_every_table_is_one_of_report_jsons(report):
    told, page, _ = report
    values, found = numbers(told), 0
    values.append(sum(stage["device_hours"] for stage in told["stages"]))
    for section, rows in tables(page).items():
        for row in rows if section != "reproduce" else ():
            for number in (one for cell in row for one in NUMBER.findall(cell)):
                assert printed(number, values), (section, row)
                found += 1
    assert found > 5


def test_every_cell_of_the_scores_is_that_cell_of_report_json(report):
    told, page, _ = report
    cells = {(c["metric"], c["arm"]): c for c in told["cells"]}
    study = len({c["arm"] for c in told["cells"]}) > 1
    shown, metric = {}, ""
    for row in tables(page)["scores"]:
        if row[0] == "metric":
            heads = row
            continue
        line = dict(zip(heads, row, strict=False))  # the meaning is told once for all arms
        metric = line["metric"] or metric
        shown[metric, line.get("arm", told["cells"][0]["arm"])] = line
    assert shown.keys() == cells.keys()
    for key, line in shown.items():
        cell, digits = cells[key], len(line["value"].partition(".")[2])
        assert line["value"] == f"{cell['mean']:.{digits}f}"
        assert line.get("± sd over seeds", "") == ("" if cell["spread"] is None else f"{cell['spread']:.{digits}f}")
        if study:
            gap = cell["difference"]
            (difference,) = (value for head, value in line.items() if head.startswith("difference to"))
            assert difference == ("" if gap is None else f"{gap:+.{digits}f}")
            ends = cell["interval"]
            assert line["95 % interval"] == (" to ".join(f"{e:+.{digits}f}" for e in ends) if ends else "")
            told = [f"{n} {what}{'s' if n != 1 else ''}" for what, n in (cell["drawn"] or {}).items()]
            assert line["over"] == ", ".join(told)


def test_the_page_is_whole_and_loads_nothing(report):
    _, page, folder = report
    assert not re.search(r'(?:src|href)="(?!data:|#)|url\((?!data:|#)|<script|@import', page)
    parser = Tables()
    parser.feed(page)
    assert parser.tags.count("h1") == 1
    assert ODD.strip() not in page  # it has a tag in it
    assert {place.suffix for place in (folder / "figures").iterdir()} == {".png", ".svg"}
    assert json.loads((folder / "report.json").read_text())["measures"]


def test_headlines_come_first_and_the_others_are_folded():
    rows = [Cell("", "pope", name, {"1": 0.5}, name == "f1") for name in ("accuracy", "f1", "f1_layer_3", "recall")]
    rows.append(Cell("", "align", "lm loss", {"1": 2.5}, False))
    known = {("pope", "f1"): Measure("F1 of yes", "fraction", "higher is better")}
    groups = scores.groups(rows, known, {"pope": "is it there?"})
    assert [(g.name, g.summary, [m.name for m in g.headlines], [m.name for m in g.others]) for g in groups] == [
        ("pope", "is it there?", ["f1"], ["accuracy", "recall"]),
        ("align", "", [], ["lm loss"]),
    ]
    page = scores.html(groups, [""])
    assert page.index("<td>f1</td>") < page.index("<summary>2 other metrics</summary>") < page.index("<td>recall</td>")
    assert "<summary>1 loss</summary>" in page
    assert re.search(r'>fraction</td><td class="note">higher</td>\s*<td class="n">0.5000</td>', page)
    assert "F1 of yes" in page
