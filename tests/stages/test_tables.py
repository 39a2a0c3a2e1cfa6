"""A report for other programs: its CSV and its LaTeX say what report.json says, whatever the names are."""

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mmalign.stages import cells, tables, verdict
from tests.stages.test_report import ACCURACY, study
from tests.stages.test_verdict import ANSWERS, asked_study, made

BOTH = {"seeds": (study, ACCURACY), "questions": (asked_study, ANSWERS)}


@pytest.fixture(params=BOTH)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a report, of five seeds or of one."""
    make, arms = BOTH[request.param]
    made(tmp_path / "report", *make(tmp_path / "runs", arms))
    return tmp_path / "report"


def lines(folder: Path) -> list[dict[str, str]]:
    with (folder / "report.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_csv_has_a_line_for_every_number_and_all_its_digits(kept):
    told = json.loads((kept / "report.json").read_text())
    rows = {(row["arm"], row["seed"], row["bench"], row["metric"]): row for row in lines(kept)}
    values = {(c["arm"], seed, c["bench"], c["metric"]): v for c in told["cells"] for seed, v in c["values"].items()}
    assert rows.keys() == values.keys()
    assert {key: float(row["value"]) for key, row in rows.items()} == values
    headlines = {(c["bench"], c["metric"]) for c in told["cells"] if c["headline"]}
    assert {(row["bench"], row["metric"]) for row in rows.values() if row["headline"] == "true"} == headlines


def test_the_csv_has_the_intervals_that_are_known(kept):
    told = json.loads((kept / "report.json").read_text())
    spans = {(row["arm"], row["bench"], row["metric"]): row["interval"] for row in told["verdict"]["rows"]}
    for row in lines(kept):
        if span := spans.get((row["arm"], row["bench"], row["metric"])):
            drawn = {row["by"]: int(row["of"])}
            assert {"low": float(row["low"]), "high": float(row["high"]), "drawn": drawn} == span
        else:
            assert [row[key] for key in ("low", "high", "by", "of")] == [""] * 4


def test_pandas_reads_the_csv(kept):
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(kept / "report.csv")
    assert list(frame.columns) == list(tables.COLUMNS)
    assert frame["value"].tolist() == [float(row["value"]) for row in lines(kept)]


def test_every_number_of_the_latex_table_is_report_jsons(kept):
    told = json.loads((kept / "report.json").read_text())
    body = (kept / "report.tex").read_text().split("\\midrule\n", 1)[1].split("\\bottomrule")[0]
    written = [line for line in body.splitlines() if line != "\\midrule"]
    assert len(written) == len(told["verdict"]["rows"])
    for line, row in zip(written, told["verdict"]["rows"], strict=True):
        own, gap = row["interval"], row["gap"]
        expected = [f"{row['mean']:.2f}"]
        expected += [f"{row['spread']:.2f}"] if row["spread"] is not None else []
        expected += [f"{own['low']:.2f}", f"{own['high']:.2f}"] if own else []
        expected += [f"{row['difference']:+.2f}", f"{gap['low']:+.2f}", f"{gap['high']:+.2f}"] if gap else []
        assert re.findall(r"\$([-+]?[\d.]+)\$", line) == expected
        assert line.count(" & ") == 7
        assert f"& {row['arm']} &" in line


@pytest.mark.parametrize(
    ("name", "latex"),
    [
        ("a_b%c&d#e$f{g}h~i^j\\k", r"a\_b\%c\&d\#e\$f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k"),
        ("sea--1,,2", "sea-{}-1,{},2"),
        ("[x]*<|>", r"{[}x{]}{*}\textless{}\textbar{}\textgreater{}"),
        ("naïve Čech", "naïve Čech"),
        ("中\u202e\n", r"U+4E2D\textbackslash{}u202e\textbackslash{}n"),
        ("", ""),
    ],
)
def test_names_as_latex_prints_them(name, latex):
    assert tables.escaped(name) == latex


def odd(tmp_path: Path) -> str:
    """The table of a study whose names are made of what LaTeX gives a meaning to."""
    scores, arms = study(tmp_path, {"base": [50.0, 60.0], r"_%&#${}~^\[*": [53.0, 61.0]})
    rows = cells.cells(scores, arms)
    for row in rows:
        row.bench = f"*{row.bench} \\end{{tabular}}%"
    said = verdict.of(rows)
    return tables.as_tex(said)


def test_no_name_ends_the_table_or_a_column(tmp_path):
    text = odd(tmp_path)
    assert text.count("\\end{tabular}") == 1
    body = text.split("\\midrule\n", 1)[1].split("\\bottomrule")[0]
    for line in body.splitlines():
        assert len(re.findall(r"(?<!\\)&", line)) == 7 if " & " in line else line == "\\midrule"
        bare = re.sub(r"\\[\\{}%&#$_]", "", line)
        assert bare.count("{") == bare.count("}")
        assert not re.search(r"[%#_^~]", bare)
        assert bare.count("$") % 2 == 0


def test_pdflatex_takes_the_file_and_a_paper_that_has_it(tmp_path):
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex")
    (tmp_path / "report.tex").write_text(odd(tmp_path / "runs"), encoding="utf-8")
    paper = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\input{report}after\\end{document}\n"
    (tmp_path / "paper.tex").write_text(paper)
    for name in ("report.tex", "paper.tex"):
        line = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", name]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]


def test_without_a_benchmark_there_are_tables_all_the_same():
    empty = verdict.Verdict([])
    assert list(csv.reader(io.StringIO(tables.as_csv([], empty)))) == [list(tables.COLUMNS)]
    assert "no benchmark" in tables.as_tex(empty)


def test_names_with_commas_quotes_and_lines_stay_one_cell(tmp_path):
    arm = 'a "b",\nc'
    scores, arms = study(tmp_path, {"base": [50.0], arm.replace("\n", " "): [51.0]})
    rows = cells.cells(scores, arms)
    for row in rows:
        row.bench = arm
    read = list(csv.DictReader(io.StringIO(tables.as_csv(rows, verdict.Verdict([])), newline="")))
    assert {row["bench"] for row in read} == {arm}


def test_the_report_says_where_they_are(kept, mmalign):
    said = mmalign("report", kept).out.splitlines()
    assert f"page: {kept / 'report.html'}" in said
    assert f"tables: {kept / 'report.csv'}, {kept / 'report.tex'}" in said
    (kept / "report.csv").unlink()
    (kept / "report.tex").unlink()  # of an older report
    assert "tables:" not in mmalign("report", kept).out
