"""MMLU: multiple-choice exams in 57 subjects, by the likelihood of the letter; no pictures (arXiv 2009.03300)."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from mmalign.benchmarks import Question, Score, means, reading
from mmalign.benchmarks.answers import Answers, JoinedAnswers, answer_rows, few
from mmalign.benchmarks.filed import FiledBenchmark
from mmalign.benchmarks.layouts import Layout
from mmalign.errors import DataError

LETTERS = "ABCD"
OPTIONS = tuple(f" {letter}" for letter in LETTERS)  # what follows "Answer:"
HARNESS = "lm-evaluation-harness"
CELLS = 6  # of a row: question, four choices, answer
ABSENT = -100.0  # hendrycks: the log-probability of a letter that is not among the candidates returned


class ExamQuestion(NamedTuple):
    """One row of an exam."""

    question: str
    choices: tuple[str, ...]
    answer: str  # a letter


class MMLU(FiledBenchmark):
    """Asked as plain text without a chat template; the answer is the likeliest of " A" to " D".

    style: of the prompt; hendrycks' own code leaves two blanks before the subject and does not strip the question,
    lm-evaluation-harness has one blank and strips. shots: worked examples before the question. split: test, or val.
    """

    max_new_tokens = 1
    meanings = {
        "average": ("share of right answers over all questions, text alone", "fraction", "higher"),
        "macro_average": ("mean of the subjects' shares of right answers", "fraction", "higher"),
        "*/*": ("share of right answers of one subject, area or group", "fraction", "higher"),
    }
    shows = False

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
            Layout("official", {"exams": f"{self.split}/*_{self.split}.csv", "dev": "dev/*_dev.csv"}, {}, "files"),
            Layout("parquet", {"exams": f"all/{prefix}-*.parquet", "dev": "all/dev-*.parquet"}, {}),
            Layout("parquet", {"exams": f"*/{prefix}-*.parquet", "dev": "*/dev-*.parquet"}, {}, "folders"),
        ]

    @cached_property
    def exams(self) -> dict[str, list[ExamQuestion]]:
        return self._read("exams")

    @cached_property
    def examples(self) -> dict[str, list[ExamQuestion]]:
        """Five worked questions of each subject; DataError where a subject has fewer than are to be shown."""
        examples = self._read("dev")
        short = [subject for subject in self.exams if len(examples.get(subject, [])) < self.shots]
        if short:
            what = f"{len(short)} subjects have fewer than {self.shots} worked examples: {few(short)}"
            raise DataError(what, at=self.location.root, fix="fetch the dev split again, or show fewer: shots=0")
        return examples

    def _read(self, role: str) -> dict[str, list[ExamQuestion]]:
        """{subject: questions}, by the alphabet. Cells are raw text: pandas would turn NA into nan."""
        exams: dict[str, list[ExamQuestion]] = {}
        for path in self.files.paths[role]:
            with reading.shape(path):
                for subject, question in _from_parquet(path) if self.files.layout == "parquet" else _from_csv(path):
                    exams.setdefault(subject, []).append(question)
        return dict(sorted(exams.items()))

    @cached_property
    def question_list(self) -> list[Question]:
        return [self._question(qid, self.shots) for qid in self.truth]

    def _question(self, qid: str, shots: int) -> Question:
        return Question(qid, self.prompt(qid, shots), None, OPTIONS, plain=True, family=_subject(qid))

    def shorter(self, question: Question) -> Question | None:
        """hendrycks' code leaves examples out one by one; the harness cuts the text's beginning off, as we do else."""
        if self.style != "hendrycks":
            return None
        shorter = (self._question(question.id, shots) for shots in range(self.shots - 1, -1, -1))
        return next((one for one in shorter if len(one.text) < len(question.text)), None)

    @cached_property
    def truth(self) -> dict[str, ExamQuestion]:
        """{subject/row: question}."""
        return {f"{subject}/{row}": one for subject, exam in self.exams.items() for row, one in enumerate(exam)}

    def prompt(self, qid: str, shots: int | None = None) -> str:
        """The text before the answer; with fewer `shots` for a model whose context it does not fit."""
        subject = _subject(qid)
        examples = self.examples.get(subject, [])[: self.shots if shots is None else shots]
        worked = "".join(f"{self._unanswered(one)} {one.answer}\n\n" for one in examples)
        return f"{self._header(subject)}{worked}{self._unanswered(self.truth[qid])}"

    def _header(self, subject: str) -> str:
        blank = " " if self.style == "hendrycks" else ""
        about = blank + subject.replace("_", " ")
        return f"The following are multiple choice questions (with answers) about {about}.\n\n"

    def _unanswered(self, one: ExamQuestion) -> str:
        question = one.question if self.style == "hendrycks" else one.question.strip()
        choices = [f"{letter}. {text}" for letter, text in zip(LETTERS, one.choices, strict=False)]
        return "\n".join([question, *choices, "Answer:"])

    def read(self, source: str) -> Answers:
        """Rows with `logprobs` ({letter: log-probability}) as their likeliest letter; others as their text."""
        lines = answer_rows(source, instead="logprobs")
        return Answers((row.id, _letter(row.raw["logprobs"]) if "logprobs" in row.raw else row.text) for row in lines)

    def right(self, qid: str) -> str:
        one = self.truth[qid]
        return f"{one.answer}. {one.choices[LETTERS.index(one.answer)]}"

    def score_joined(self, joined: JoinedAnswers, protocol: str) -> Score:
        """The share of right letters over all questions, and by subject, area and group; fractions."""
        letters = {qid: text.strip() for qid, text in joined.texts.items()}
        items = {qid: float(letter == self.truth[qid].answer) for qid, letter in letters.items()}
        joined.counts["unparsable"] = sum(letter not in tuple(LETTERS) for letter in letters.values())
        joined.notes.append(f"groups: hendrycks/ by hendrycks' table, harness/ by {HARNESS}, where anatomy is stem")
        metrics = {"average": fmean(items.values()), **means.over(items, groups)}
        metrics["macro_average"] = fmean(value for name, value in metrics.items() if name.startswith("subject/"))
        printed = {name: round(value, 3) for name, value in metrics.items()}
        return Score(metrics, "average", items, joined.counts, joined.notes, printed, letters)


def likeliest(logprobs: Mapping[str, float]) -> str:
    """The letter with the highest log-probability; the first of equals."""
    of_letter = {name.strip(): value for name, value in logprobs.items()}
    return max(LETTERS, key=lambda letter: of_letter.get(letter, ABSENT))


def _letter(logprobs: Any) -> str:
    if not isinstance(logprobs, Mapping):
        raise DataError(f"`logprobs` is no object: {logprobs!r}", fix='{"A": -0.1, "B": -3.2, ...}')
    return likeliest(logprobs)


def _from_csv(path: str) -> Iterable[tuple[str, ExamQuestion]]:
    subject = os.path.basename(path).rsplit("_", 1)[0]
    rows = reading.csv_rows(path)
    for number, row in enumerate(rows, 1):
        if len(row) != CELLS:
            fix = "the file may be cut off: fetch it again"
            raise DataError(f"row {number} has {len(row)} of {CELLS} cells", at=path, fix=fix)
    return [(subject, ExamQuestion(row[0], tuple(row[1:-1]), row[-1])) for row in rows]


def _from_parquet(path: str) -> Iterable[tuple[str, ExamQuestion]]:
    rows = reading.parquet([path])
    return [
        (row["subject"], ExamQuestion(row["question"], tuple(row["choices"]), LETTERS[row["answer"]])) for row in rows
    ]


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


def _subject(qid: str) -> str:
    return qid.rsplit("/", 1)[0]


def groups(qid: str) -> list[str]:
    """What a question is counted under: its subject, and the area and groups of a subject the tables know."""
    subject = _subject(qid)
    known = {"area": _area(subject), "hendrycks": _group(subject), "harness": _harness(subject)}
    return [f"subject/{subject}"] + [f"{kind}/{group}" for kind, group in known.items() if group]
