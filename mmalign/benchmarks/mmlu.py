"""MMLU: multiple-choice exams in 57 subjects, by the likelihood of the letter; no pictures (arXiv 2009.03300)."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from mmalign.benchmarks import Question, Score, means, reading
from mmalign.benchmarks.answers import Answers, Joined, few, rows
from mmalign.benchmarks.filed import FiledBenchmark
from mmalign.benchmarks.places import Layout
from mmalign.errors import DataError

LETTERS = "ABCD"
OPTIONS = tuple(f" {letter}" for letter in LETTERS)  # what follows "Answer:"
HARNESS = "lm-evaluation-harness"
CELLS = 6  # of a row: question, four choices, answer
ABSENT = -100.0  # hendrycks: the log-probability of a letter that is not among the candidates returned


class Exam(NamedTuple):
    question: str
    choices: tuple[str, ...]
    answer: str  # a letter


class MMLU(FiledBenchmark):
    """Asked as plain text without a chat template; the answer is the likeliest of " A" to " D".

    style: of the prompt; hendrycks' own code leaves two blanks before the subject and does not strip the question,
    lm-evaluation-harness has one blank and strips. shots: worked examples before the question.
    """

    max_new_tokens = 1

    def __init__(
        self, data: str, style: Literal["hendrycks", "harness"] = "harness", shots: int = 5, split: str = "test"
    ) -> None:
        if style not in ("hendrycks", "harness"):
            raise DataError(f"no prompt style {style!r}", fix="style=hendrycks or style=harness")
        if shots < 0:
            raise DataError(f"shots cannot be negative, got {shots}", fix="shots=5, or shots=0 for none")
        self.style, self.shots, self.split = style, shots, split
        super().__init__(data)

    def layouts(self) -> Sequence[Layout]:
        prefix = {"val": "validation"}.get(self.split, self.split)
        return [
            Layout("official", {"exams": f"{self.split}/*_{self.split}.csv", "dev": "dev/*_dev.csv"}, {}),
            Layout("parquet", {"exams": f"all/{prefix}-*.parquet", "dev": "all/dev-*.parquet"}, {}),
            Layout("parquet", {"exams": f"*/{prefix}-*.parquet", "dev": "*/dev-*.parquet"}, {}),
        ]

    @cached_property
    def exams(self) -> dict[str, list[Exam]]:
        return self._read("exams")

    @cached_property
    def examples(self) -> dict[str, list[Exam]]:
        """Five worked questions of each subject; DataError where a subject has fewer than are to be shown."""
        found = self._read("dev")
        short = [subject for subject in self.exams if len(found.get(subject, [])) < self.shots]
        if short:
            what = f"{len(short)} subjects have fewer than {self.shots} worked examples: {few(short)}"
            raise DataError(what, at=self.place.root, fix="fetch the dev split again, or show fewer: shots=0")
        return found

    def _read(self, role: str) -> dict[str, list[Exam]]:
        """{subject: questions}, by the alphabet. Cells are raw text: pandas would turn NA into nan."""
        found: dict[str, list[Exam]] = {}
        for path in self.files.files[role]:
            with reading.shape(path):
                for subject, exam in _from_parquet(path) if self.files.layout == "parquet" else _from_csv(path):
                    found.setdefault(subject, []).append(exam)
        return dict(sorted(found.items()))

    @cached_property
    def asked(self) -> list[Question]:
        return [self._question(name, self.shots) for name in self.truth]

    def _question(self, name: str, shots: int) -> Question:
        return Question(name, self.prompt(name, shots), None, OPTIONS, plain=True, family=name.rsplit("/", 1)[0])

    def shorter(self, question: Question) -> Question | None:
        """hendrycks' code leaves examples out one by one; the harness cuts the text's beginning off, as we do else."""
        if self.style != "hendrycks":
            return None
        fewer = (self._question(question.id, shots) for shots in range(self.shots - 1, -1, -1))
        return next((one for one in fewer if len(one.text) < len(question.text)), None)

    @cached_property
    def truth(self) -> dict[str, Exam]:
        """{subject/row: question}."""
        return {f"{subject}/{row}": exam for subject, exams in self.exams.items() for row, exam in enumerate(exams)}

    def prompt(self, name: str, shots: int | None = None) -> str:
        """The text before the answer; with fewer `shots` for a model whose context it does not fit."""
        subject = name.rsplit("/", 1)[0]
        examples = self.examples.get(subject, [])[: self.shots if shots is None else shots]
        told = "".join(f"{self._told(one)} {one.answer}\n\n" for one in examples)
        return f"{self._header(subject)}{told}{self._told(self.truth[name])}"

    def _header(self, subject: str) -> str:
        blank = " " if self.style == "hendrycks" else ""
        about = blank + subject.replace("_", " ")
        return f"The following are multiple choice questions (with answers) about {about}.\n\n"

    def _told(self, exam: Exam) -> str:
        question = exam.question if self.style == "hendrycks" else exam.question.strip()
        choices = [f"{one}. {text}" for one, text in zip(LETTERS, exam.choices, strict=False)]
        return "\n".join([question, *choices, "Answer:"])

    def read(self, source: str) -> Answers:
        """Rows with `logprobs` ({letter: log-probability}) as their likeliest letter; others as their text."""
        lines = rows(source, texts=False)
        return Answers((row.id, _letter(row.raw["logprobs"]) if "logprobs" in row.raw else row.text) for row in lines)

    def scored(self, joined: Joined, protocol: str) -> Score:
        """The share of right letters over all questions, and by subject, area and group; fractions."""
        taken = {name: text.strip() for name, text in joined.texts.items()}
        items = {name: float(said == self.truth[name].answer) for name, said in taken.items()}
        joined.counts["unparsable"] = sum(said not in tuple(LETTERS) for said in taken.values())
        joined.notes.append(f"groups: hendrycks/ by hendrycks' table, harness/ by {HARNESS}, where anatomy is stem")
        metrics = {"average": fmean(items.values()), **means.over(items, groups)}
        metrics["macro_average"] = fmean(value for name, value in metrics.items() if name.startswith("subject/"))
        printed = {name: round(value, 3) for name, value in metrics.items()}
        return Score(metrics, "average", items, joined.counts, joined.notes, printed, taken)


def likeliest(logprobs: Mapping[str, float]) -> str:
    """The letter with the highest log-probability; the first of equals."""
    given = {name.strip(): value for name, value in logprobs.items()}
    return max(LETTERS, key=lambda letter: given.get(letter, ABSENT))


def _letter(logprobs: Any) -> str:
    if not isinstance(logprobs, Mapping):
        raise DataError(f"`logprobs` is no object: {logprobs!r}", fix='{"A": -0.1, "B": -3.2, ...}')
    return likeliest(logprobs)


def _from_csv(path: str) -> Iterable[tuple[str, Exam]]:
    subject = os.path.basename(path).rsplit("_", 1)[0]
    rows = reading.csv_rows(path)
    for number, row in enumerate(rows, 1):
        if len(row) != CELLS:
            fix = "the file may be cut off: fetch it again"
            raise DataError(f"row {number} has {len(row)} of {CELLS} cells", at=path, fix=fix)
    return [(subject, Exam(row[0], tuple(row[1:-1]), row[-1])) for row in rows]


def _from_parquet(path: str) -> Iterable[tuple[str, Exam]]:
    rows = reading.parquet([path])
    return [(row["subject"], Exam(row["question"], tuple(row["choices"]), LETTERS[row["answer"]])) for row in rows]


@cache
def _table() -> dict[str, Any]:
    return dict(json.loads((Path(__file__).parent / "tables" / "mmlu.json").read_text(encoding="utf-8")))


@cache
def _area(subject: str) -> str | None:
    return next((area for area, subjects in _table()["areas"].items() if subject in subjects), None)


@cache
def _group(subject: str) -> str | None:
    return next((group for group, areas in _table()["groups"].items() if _area(subject) in areas), None)


def _harness(subject: str) -> str | None:
    table = _table()["harness"]
    group = _group(subject)
    return str(table["moved"].get(subject, table["names"][group])) if group else None


def groups(name: str) -> list[str]:
    """What a question is counted under: its subject, and the area and groups of a subject the tables know."""
    subject = name.rsplit("/", 1)[0]
    known = {"area": _area(subject), "hendrycks": _group(subject), "harness": _harness(subject)}
    return [f"subject/{subject}"] + [f"{kind}/{group}" for kind, group in known.items() if group]
