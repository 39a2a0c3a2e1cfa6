"""ScienceQA: multiple-choice questions from school science, half of them with a picture (arXiv 2209.09513)."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from statistics import fmean
from typing import Any, NamedTuple

from mmalign.benchmarks import Question, Score, means, reading
from mmalign.benchmarks.answers import Joined, Official
from mmalign.benchmarks.filed import LETTER, FiledBenchmark
from mmalign.benchmarks.options import option
from mmalign.benchmarks.pictures import tabled
from mmalign.benchmarks.places import Layout
from mmalign.errors import DataError

LETTERS = "ABCDE"
MARK = "<image>"
FAILED = "FAILED"  # LLaVA's word for an answer without a letter
_PHRASE = re.compile(r"The answer is ([A-Z]).")  # the last dot is any character, as in the original

SUBJECTS = {"natural science": "natural", "social science": "social", "language science": "language"}


class Problem(NamedTuple):
    question: str
    choices: tuple[str, ...]
    answer: int
    hint: str
    image: Any  # None: text only
    labels: Mapping[str, str]  # subject, grade, topic, where the layout has them


class ScienceQA(FiledBenchmark):
    """split: test, val, train, or a mini split of pid_splits.json."""

    max_new_tokens = 1024
    protocols = ("official", "lmms-eval", "vlmevalkit")
    folders = ("images/test", "images/val", "images/train", "test", "val", "train")
    rgb = False
    official_gaps = Official(missing="skip", unknown="skip")

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
                return {row["index"]: _from_tsv(row) for row in tabled(source)}
            if self.files.layout == "parquet":
                rows = reading.parquet(self.files.files["problems"])
                return {str(number): _problem(row, row["image"]) for number, row in enumerate(rows)}
            return self._official(reading.json_file(source))

    def _official(self, every: Mapping[str, Mapping[str, Any]]) -> dict[str, Problem]:
        splits = reading.json_file(self.files.one("splits"))
        if self.split not in splits:
            raise DataError(f"no split {self.split!r}", at=self.files.one("splits"), fix=f"one of {', '.join(splits)}")
        return {str(name): _problem(every[name], _picture(name, every[name])) for name in splits[self.split]}

    @cached_property
    def asked(self) -> list[Question]:
        if self.files.layout != "LLaVA":
            return [Question(name, _prompt(one), one.image) for name, one in self.truth.items()]
        source = self.files.one("llava")
        with reading.shape(source):
            return [_from_llava(row) for row in reading.json_file(source)]

    def scored(self, joined: Joined, protocol: str) -> Score:
        """Accuracy in percent over the questions with a picture (the published number) and over all."""
        if protocol != "official":
            return self._peer(joined, PEERS[protocol])
        taken = {name: letter(text) for name, text in joined.texts.items()}
        items = {name: 100.0 * self._right(name, taken.get(name, FAILED)) for name in self.truth}
        joined.counts["unparsable"] = sum(one == FAILED for one in taken.values())
        metrics = {"acc": fmean(items.values()), **self._with_picture(items, taken), **means.over(items, self._groups)}
        headline = "img_acc" if "img_acc" in metrics else "acc"
        printed = {name: round(value, 2) for name, value in metrics.items()}
        return Score(metrics, headline, items, joined.counts, joined.notes, printed, taken)

    def _right(self, name: str, said: str) -> bool:
        problem = self.truth[name]
        return index(said, len(problem.choices)) == problem.answer

    def _with_picture(self, items: Mapping[str, float], taken: Mapping[str, str]) -> dict[str, float]:
        """LLaVA tells a picture by the logged prompt, so that a missing answer leaves this mean; we ask the problem."""
        values = [value for name, value in items.items() if self.truth[name].image is not None and name in taken]
        return {"img_acc": fmean(values)} if values else {}

    def _groups(self, name: str) -> list[str]:
        """The columns of the paper's table (subject, context, grade) by the official tool's names, and the topic."""
        problem = self.truth[name]
        topic = problem.labels.get("topic")
        return [f"by/{group}" for group in groups(problem)] + ([f"topic/{topic}"] if topic else [])

    def _peer(self, joined: Joined, right: "Peer") -> Score:
        items = {name: float(right(text, self.truth[name])) for name, text in joined.texts.items()}
        return Score({"exact_match": fmean(items.values())}, "exact_match", items, joined.counts, joined.notes)


def letter(text: str) -> str:
    """LLaVA's reading of an answer: "A", "A. words", or one "The answer is A" with something behind; else FAILED."""
    if text in tuple(LETTERS):
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    found = _PHRASE.findall(text)
    return found[0] if len(found) == 1 else FAILED


def index(said: str, choices: int) -> int:
    """The place of a letter among the choices; -1 where it is none of theirs."""
    return LETTERS.index(said) if said in tuple(LETTERS[:choices]) else -1


def groups(problem: Problem) -> list[str]:
    labels, picture = problem.labels, problem.image is not None
    found = [SUBJECTS[labels["subject"]]] if labels.get("subject") in SUBJECTS else []
    found += ["has_text"] * bool(problem.hint) + ["has_image"] * picture
    found += ["no_context"] * (not problem.hint and not picture)
    grade = labels.get("grade", "").removeprefix("grade")
    return found + ([f"grade_{'1_6' if int(grade) <= 6 else '7_12'}"] if grade.isdigit() else [])


def _lmms_eval(text: str, problem: Problem) -> bool:
    """The letter in any case, or a capital followed by a period."""
    said, right = text.strip(), LETTERS[problem.answer]
    if said.lower() == right.lower():
        return True
    return len(said) >= 2 and said[0].isupper() and said[1] == "." and said[0] == right


def _vlmevalkit(text: str, problem: Problem) -> bool:
    return option(text, dict(zip(LETTERS, problem.choices, strict=False))) == LETTERS[problem.answer]


Peer = Callable[[str, Problem], bool]
PEERS: dict[str, Peer] = {"lmms-eval": _lmms_eval, "vlmevalkit": _vlmevalkit}


def _problem(row: Mapping[str, Any], image: Any) -> Problem:
    labels = {key: str(row[key]) for key in ("subject", "grade", "topic") if row.get(key)}
    return Problem(row["question"], tuple(row["choices"]), int(row["answer"]), row["hint"] or "", image, labels)


def _picture(name: str, row: Mapping[str, Any]) -> str | None:
    return f"{name}/{row['image']}" if row["image"] else None


def _from_tsv(row: Mapping[str, Any]) -> Problem:
    choices = tuple(row[one] for one in LETTERS if row.get(one))
    return Problem(row["question"], choices, LETTERS.index(row["answer"]), row.get("hint", ""), row["image"], {})


def _prompt(problem: Problem) -> str:
    """The text of LLaVA's file, made from the problem: context, question, choices."""
    context = [f"Context: {problem.hint}"] if problem.hint else []
    choices = [f"{one}. {text}" for one, text in zip(LETTERS, problem.choices, strict=False)]
    return _finished("\n".join([*context, problem.question, *choices]))


def _finished(text: str) -> str:
    """Any mark of a picture is taken out of the text: the one in front is put there by the caller."""
    return f"{text.replace(MARK, '').strip()}\n{LETTER}"


def _from_llava(row: Mapping[str, Any]) -> Question:
    return Question(str(row["id"]), _finished(row["conversations"][0]["value"]), row.get("image"))
