"""Answers: read from a file, and joined by id to the questions they answer, with every gap counted."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from mmalign.benchmarks import Gaps, reading
from mmalign.errors import DataError, suggest
from mmalign.io import document

FEW = 5  # ids named in a message


class AnswerRow(NamedTuple):
    """One line of an answer file."""

    id: str  # as the file has it
    text: str
    raw: Mapping[str, Any]


def answer_rows(path: str, texts: bool = True) -> list[AnswerRow]:
    """The lines of an answer file: {"id", "text"} (ours) or {"question_id", "text"} (LLaVA's).

    texts: False where a line may hold something else than text (log-probabilities). DataError for any other line.
    """
    rows = []
    for number, raw in enumerate(reading.json_lines(path), 1):
        qid, text = raw.get("id", raw.get("question_id")), raw.get("text", None if texts else "")
        if qid is None:
            raise _unusable("neither `id` nor `question_id`", path, number)
        if not isinstance(qid, (str, int)) or isinstance(qid, bool):
            raise _unusable(f"an id that is neither text nor a whole number: {document.shown(qid)}", path, number)
        if not isinstance(text, str):
            problem = f"a `text` that is no text: {document.shown(text)}" if "text" in raw else "no `text`"
            raise _unusable(problem, path, number)
        rows.append(AnswerRow(str(qid), text, raw))
    return rows


def _unusable(what: str, path: str, number: int) -> DataError:
    fix = 'each line is {"id": ..., "text": ...} or LLaVA\'s {"question_id": ..., "text": ...}'
    return DataError(f"answer {number} has {what}", at=path, fix=fix)


class Answers(dict[str, str]):
    """{question id: text}; the last row of an id counts. `rows` keeps every row, in the order they came."""

    def __init__(self, rows: Iterable[tuple[str, str]] = ()) -> None:
        self.rows = list(rows)
        super().__init__(self.rows)

    @classmethod
    def of(cls, answers: Mapping[str, str]) -> "Answers":
        """Any mapping as Answers: one row for each id."""
        return answers if isinstance(answers, cls) else cls(answers.items())


class GapRule(NamedTuple):
    """What the official tool does about gaps."""

    missing: Literal["refuse", "skip"] = "refuse"  # skip: averages over what there is
    unknown: Literal["refuse", "skip"] = "refuse"


@dataclass
class JoinedAnswers:
    """Answers next to their questions."""

    texts: dict[str, str]  # in the order of the questions; an id that is not there was skipped
    rows: list[tuple[str, str]]  # every row of a known id, duplicates too, for tools that count rows
    gaps: Gaps
    counts: dict[str, int]
    notes: list[str] = field(default_factory=list)


def join(qids: Collection[str], answers: Mapping[str, str], gaps: Gaps, official: GapRule) -> JoinedAnswers:
    """Each question's id with its answer; `gaps` says what to do about the others. DataError for what it refuses."""
    if gaps not in ("strict", "lenient", "official"):
        raise DataError(f"no such way to treat gaps: {gaps!r}", fix=suggest(gaps, ("strict", "lenient", "official")))
    answers = Answers.of(answers)
    known = qids if isinstance(qids, (dict, set)) else set(qids)
    missing = [qid for qid in qids if qid not in answers]
    unknown = [qid for qid in answers if qid not in known]
    if answers and len(unknown) == len(answers):
        what = f"none of the {len(answers)} answers is to a question asked here: {few(unknown)}"
        raise DataError(what, fix=f"are they another benchmark's or split's? the questions here: {few(missing)}")
    _refuse(missing, unknown, len(qids), official if gaps == "official" else _RULES[gaps])
    texts = {qid: answers[qid] for qid in qids if qid in answers}
    if gaps == "lenient":
        texts = {qid: answers.get(qid, "") for qid in qids}
    if not texts:
        raise DataError("there are no answers to score", fix="name a file with answers to these questions")
    rows = [row for row in answers.rows if row[0] in known]
    counts, notes = _counts(answers, len(qids), missing, unknown), list(_notes(missing, unknown, len(qids), gaps))
    return JoinedAnswers(texts, rows, gaps, counts, notes)


_RULES = {"strict": GapRule("refuse", "refuse"), "lenient": GapRule("skip", "skip")}


def _refuse(missing: list[str], unknown: list[str], asked: int, rule: GapRule) -> None:
    if missing and rule.missing == "refuse":
        raise DataError(
            f"{len(missing)} of {asked} questions have no answer: {few(missing)}",
            fix="finish the run, or score leniently: a missing answer then counts as an empty one",
        )
    if unknown and rule.unknown == "refuse":
        raise DataError(
            f"{len(unknown)} answers belong to no question: {few(unknown)}",
            fix="name the data these answers are for, or score leniently: they are then left out",
        )


def few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")


def _counts(answers: Answers, asked: int, missing: list[str], unknown: list[str]) -> dict[str, int]:
    return {
        "asked": asked,
        "answered": asked - len(missing),
        "missing": len(missing),
        "duplicate": len(answers.rows) - len(answers),
        "unknown": len(unknown),
    }


def _notes(missing: list[str], unknown: list[str], asked: int, gaps: Gaps) -> Iterable[str]:
    if missing:
        treatment = "left out of the mean" if gaps == "official" else "counted as empty answers"
        yield f"{len(missing)} of {asked} questions have no answer; {treatment}"
    if unknown:
        yield f"{len(unknown)} answers belong to no question; left out"
