"""ScienceQA: multiple-choice questions from school science, half of them with a picture (arXiv 2209.09513)."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from statistics import fmean
from typing import Any, NamedTuple

from mmalign.benchmarks import Question, Score, means, reading
from mmalign.benchmarks.answers import GapRule, JoinedAnswers
from mmalign.benchmarks.filed import LETTER, FiledBenchmark
from mmalign.benchmarks.layouts import Layout
from mmalign.benchmarks.options import option
from mmalign.benchmarks.pictures import vlmevalkit_rows
from mmalign.errors import DataError

LETTERS = "ABCDE"
MARK = "<image>"
FAILED = "FAILED"  # LLaVA's word for an answer without a letter
_PHRASE = re.compile(r"The answer is ([A-Z]).")  # the last dot is any character, as in the original

SUBJECTS = {"natural science": "natural", "social science": "social", "language science": "language"}


class Problem(NamedTuple):
    """A problem of the official file."""

    question: str
    choices: tuple[str, ...]
    answer: int  # the number of a choice
    hint: str
    image: Any  # None: text only
    labels: Mapping[str, str]  # subject, grade, topic, where the layout has them


class ScienceQA(FiledBenchmark):
    """split: test, val, train, or a mini split of pid_splits.json."""

    max_new_tokens = 1024
    protocols = ("official", "lmms-eval", "vlmevalkit")
    picture_folders = ("images/test", "images/val", "images/train", "test", "val", "train")
    meanings = {
        "img_acc": ("share of right answers to the questions with a picture", "percent", "higher"),
        "acc": ("share of right answers to all questions", "percent", "higher"),
        "exact_match": ("share of right answers, as other toolkits give it", "fraction", "higher"),
        "*": ("share of right answers of one group of questions", "percent", "higher"),
    }
    rgb = False
    official_gaps = GapRule(missing="skip", unknown="skip")

    def __init__(self, data: str, split: str = "test", images: str | None = None) -> None:
        self.split = split
        super().__init__(data, images)

    def layouts(self) -> Sequence[Layout]:
        problems = {"problems": "problems.json", "splits": "pid_splits.json"}
        prefix = {"val": "validation"}.get(self.split, self.split)
        return [
            Layout("LLaVA", {"llava": f"llava_{self.split}_CQM-A.json", **problems}, {}),
            Layout("official", problems, {}),
            Layout("parquet", {"problems": f"ScienceQA-FULL/{prefix}-*.parquet"}, {}),
            Layout("parquet", {"problems": f"{prefix}-*.parquet"}, {}),
            Layout("TSV", {"problems": f"ScienceQA_{self.split.upper()}.tsv"}, {}),
        ]

    @cached_property
    def truth(self) -> dict[str, Problem]:
        """By id; the parquet and TSV layouts have none, so the row's number (or index) is the id."""
        source = self.files.one("problems")
        with reading.shape(source):
            if self.files.layout == "TSV":
                return {row["index"]: _from_tsv(row) for row in vlmevalkit_rows(source)}
            if self.files.layout == "parquet":
                rows = reading.parquet(self.files.paths["problems"])
                return {str(number): _problem(row, row["image"]) for number, row in enumerate(rows)}
            return self._official(reading.json_file(source))

    def _official(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Problem]:
        splits = reading.json_file(self.files.one("splits"))
        if self.split not in splits:
            raise DataError(f"no split {self.split!r}", at=self.files.one("splits"), fix=f"one of {', '.join(splits)}")
        return {str(qid): _problem(rows[qid], _picture(qid, rows[qid])) for qid in splits[self.split]}

    @cached_property
    def question_list(self) -> list[Question]:
        if self.files.layout != "LLaVA":
            return [Question(qid, _prompt(problem), problem.image) for qid, problem in self.truth.items()]
        source = self.files.one("llava")
        with reading.shape(source):
            return [_from_llava(row) for row in reading.json_file(source)]

    def right(self, qid: str) -> str:
        problem = self.truth[qid]
        return f"{LETTERS[problem.answer]}. {problem.choices[problem.answer]}"

    def score_joined(self, joined: JoinedAnswers, protocol: str) -> Score:
        """Accuracy in percent over the questions with a picture (the published number) and over all."""
        if protocol != "official":
            return self._peer(joined, PEERS[protocol])
        letters = {qid: letter(text) for qid, text in joined.texts.items()}
        items = {qid: 100.0 * self._is_right(qid, letters.get(qid, FAILED)) for qid in self.truth}
        joined.counts["unparsable"] = sum(one == FAILED for one in letters.values())
        groups = means.over(items, self._groups)
        pictured = self._with_picture(items, letters)
        metrics = {
            "acc": fmean(items.values()),
            **({"img_acc": fmean(pictured.values())} if pictured else {}),
            **groups,
        }
        headline = "img_acc" if pictured else "acc"
        printed = {name: round(value, 2) for name, value in metrics.items()}
        parts = {"": means.sums((pictured or items).items())}
        return Score(metrics, headline, items, joined.counts, joined.notes, printed, letters, parts)

    def _is_right(self, qid: str, letter: str) -> bool:
        problem = self.truth[qid]
        return index(letter, len(problem.choices)) == problem.answer

    def _with_picture(self, items: Mapping[str, float], answered: Collection[str]) -> dict[str, float]:
        """LLaVA tells a picture by the logged prompt, so that a missing answer leaves this mean; we ask the problem."""
        return {qid: item for qid, item in items.items() if self.truth[qid].image is not None and qid in answered}

    def _groups(self, qid: str) -> list[str]:
        """The columns of the paper's table (subject, context, grade) by the official tool's names, and the topic."""
        problem = self.truth[qid]
        topic = problem.labels.get("topic")
        return [f"by/{group}" for group in groups(problem)] + ([f"topic/{topic}"] if topic else [])

    def _peer(self, joined: JoinedAnswers, is_right: "Peer") -> Score:
        items = {qid: float(is_right(text, self.truth[qid])) for qid, text in joined.texts.items()}
        return Score({"exact_match": fmean(items.values())}, "exact_match", items, joined.counts, joined.notes)


def letter(text: str) -> str:
    """LLaVA's reading of an answer: "A", "A. words", or one "The answer is A" with something behind; else FAILED."""
    if text in tuple(LETTERS):
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    letters = _PHRASE.findall(text)
    return letters[0] if len(letters) == 1 else FAILED


def index(letter: str, choices: int) -> int:
    """The place of a letter among the choices; -1 where it is none of theirs."""
    return LETTERS.index(letter) if letter in tuple(LETTERS[:choices]) else -1


def groups(problem: Problem) -> list[str]:
    """The columns of the paper's table a problem is counted in, by the official tool's names."""
    labels, picture = problem.labels, problem.image is not None
    names = [SUBJECTS[labels["subject"]]] if labels.get("subject") in SUBJECTS else []
    names += ["has_text"] * bool(problem.hint) + ["has_image"] * picture
    names += ["no_context"] * (not problem.hint and not picture)
    grade = labels.get("grade", "").removeprefix("grade")
    return names + ([f"grade_{'1_6' if int(grade) <= 6 else '7_12'}"] if grade.isdigit() else [])


def _lmms_eval(text: str, problem: Problem) -> bool:
    """The letter in any case, or a capital followed by a period."""
    text, right = text.strip(), LETTERS[problem.answer]
    if text.lower() == right.lower():
        return True
    return len(text) >= 2 and text[0].isupper() and text[1] == "." and text[0] == right


def _vlmevalkit(text: str, problem: Problem) -> bool:
    return option(text, dict(zip(LETTERS, problem.choices, strict=False))) == LETTERS[problem.answer]


Peer = Callable[[str, Problem], bool]
PEERS: dict[str, Peer] = {"lmms-eval": _lmms_eval, "vlmevalkit": _vlmevalkit}


def _problem(row: Mapping[str, Any], image: Any) -> Problem:
    labels = {key: str(row[key]) for key in ("subject", "grade", "topic") if row.get(key)}
    return Problem(row["question"], tuple(row["choices"]), int(row["answer"]), row["hint"] or "", image, labels)


def _picture(qid: str, row: Mapping[str, Any]) -> str | None:
    return f"{qid}/{row['image']}" if row["image"] else None


def _from_tsv(row: Mapping[str, Any]) -> Problem:
    choices = tuple(row[letter] for letter in LETTERS if row.get(letter))
    return Problem(row["question"], choices, LETTERS.index(row["answer"]), row.get("hint", ""), row["image"], {})


def _prompt(problem: Problem) -> str:
    """The text of LLaVA's file, made from the problem: context, question, choices."""
    context = [f"Context: {problem.hint}"] if problem.hint else []
    choices = [f"{letter}. {text}" for letter, text in zip(LETTERS, problem.choices, strict=False)]
    return _with_suffix("\n".join([*context, problem.question, *choices]))


def _with_suffix(text: str) -> str:
    """Any mark of a picture is taken out of the text: the one in front is put there by the caller."""
    return f"{text.replace(MARK, '').strip()}\n{LETTER}"


def _from_llava(row: Mapping[str, Any]) -> Question:
    return Question(str(row["id"]), _with_suffix(row["conversations"][0]["value"]), row.get("image"))
