"""A report for other programs: every number as tidy CSV, the verdict as a LaTeX table."""

import csv
import io
import re
import unicodedata
from collections.abc import Sequence

from mmalign.io.visible import one_line
from mmalign.stages.cells import Cell
from mmalign.stages.questions import Span
from mmalign.stages.verdict import Row, Verdict

COLUMNS = ("arm", "seed", "bench", "metric", "headline", "value", "low", "high", "by", "of")


def as_csv(rows: Sequence[Cell], verdict: Verdict) -> str:
    """A line for every arm, seed, benchmark and metric; low and high: a 95 % interval where one is known, `of` so many
    pictures or questions. Numbers are as in report.json."""
    spans = {(row.arm, row.bench, row.metric): row.interval for row in verdict.rows}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for cell in rows:
        span = spans.get((cell.arm, cell.bench, cell.metric))
        ends = (repr(span.low), repr(span.high), span.by, span.of) if span else ("", "", "", "")
        for seed, value in cell.values.items():
            headline = str(cell.headline).lower()
            table.writerow([cell.arm, seed, cell.bench, cell.metric, headline, repr(float(value)), *ends])
    return text.getvalue()


# a paper takes the table with \input{report}; the file by itself is a document, too: before \begin{document} TeX has a
# complaint under the name \@nodocument, behind it none
BEGIN = r"""% needs \usepackage{booktabs}; \input{report} in a document, or pdflatex report.tex
\makeatletter
\ifx\@nodocument\relax\makeatother\else\makeatother
\documentclass{article}\usepackage[T1]{fontenc}\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}
\usepackage{booktabs}\pagestyle{empty}
\def\reportends{\end{document}}
\begin{document}\noindent
\fi
"""
END = "\\csname reportends\\endcsname\n"


def as_tex(verdict: Verdict) -> str:
    """The verdict as a booktabs table."""
    heads = ["Benchmark", "Metric"]
    heads += ["Arm"] if verdict.study else []
    heads += ["Value", r"$\pm$ sd" if verdict.seeds else r"95\,\% interval"]
    heads += ["Difference", r"95\,\% interval", "over"] if verdict.study else []
    align = "l" * (3 if verdict.study else 2) + "r" * (len(heads) - (3 if verdict.study else 2))
    groups = ["".join(_line(verdict, row) for row in own) for own in verdict.by_bench.values()]
    lines = "\\midrule\n".join(groups) or f"\\multicolumn{{{len(heads)}}}{{l}}{{no benchmark}} \\\\\n"
    table = f"\\begin{{tabular}}{{{align}}}\n\\toprule\n{' & '.join(heads)} \\\\\n\\midrule\n{lines}\\bottomrule\n"
    return f"{BEGIN}{table}\\end{{tabular}}\n{END}"


def _line(verdict: Verdict, row: Row) -> str:
    return f"{' & '.join(_columns(verdict, row))} \\\\\n"


def _columns(verdict: Verdict, row: Row) -> list[str]:
    columns = [escaped(row.bench), escaped(row.metric)]
    columns += [escaped(row.arm)] if verdict.study else []
    columns += [_number(row.number(row.mean))]
    columns += [_number(row.number(row.spread))] if verdict.seeds else [_ends(row, row.interval)]
    if verdict.study:
        by = row.gap.told if row.gap else ""
        columns += [_number(row.number(row.difference, signed=True)), _ends(row, row.gap, signed=True), by]
    return columns


def _ends(row: Row, span: Span | None, signed: bool = False) -> str:
    return f"${row.number(span.low, signed)}$ to ${row.number(span.high, signed)}$" if span else ""


def _number(text: str) -> str:
    """A number whose sign is a sign, not a hyphen."""
    return f"${text}$" if text else ""


MEANT = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "`": r"\textasciigrave{}", "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip
ACCENTS = "\u0300\u0301\u0302\u0303\u0308\u030c\u0327"  # grave, acute, circumflex, tilde, dots, caron, cedilla


def escaped(text: str) -> str:
    """A name as LaTeX prints it; letters that pdflatex does not know, neither ASCII nor accented, by their number."""
    letters = (_letter(letter) for letter in unicodedata.normalize("NFC", one_line(text)))
    return re.sub(r"([-,'])(?=\1)", r"\1{}", "".join(letters))  # two hyphens would be one dash


def _letter(letter: str) -> str:
    parts = unicodedata.normalize("NFD", letter)
    if letter.isascii() or (len(parts) == 2 and parts[0].isascii() and parts[1] in ACCENTS):
        return MEANT.get(letter, letter)
    return f"U+{ord(letter):04X}"
