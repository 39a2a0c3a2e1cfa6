"""Answers: the rows of their files, and how they are joined by id to the questions, with every gap counted."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from mmalign.benchmarks import Gaps
from mmalign.benchmarks.records import IDS, TEXTS, Record, records
from mmalign.errors import DataError, suggest
from mmalign.io import document

FEW = 5  # ids named in a message
FORMS = (
    'each is {"id" or "question_id", "text"}, {"question_id" or "image", "answer"}, {"questionId", "prediction"}, '
    "{index, prediction} or a line of lmms-eval's log"
)


class AnswerRow(NamedTuple):
    """One row of a file of answers."""

    id: str  # as the file has it
    text: str
    raw: Mapping[str, Any]
    at: str = ""  # where it stands
    key: str = "id"  # what the id is called there: index and doc_id are the numbers of rows in some other file


def answer_rows(path: str, instead: str = "") -> list[AnswerRow]:
    """The rows of a file of answers, in any form that is handed around (FORMS); what holds them: see records.

    instead: what a row may hold instead of a text (log-probabilities). DataError, with the place, for a row that is no
    answer or that can be read in two ways.
    """
    return [_row(number, record, instead) for number, record in enumerate(records(path), 1)]


def _row(number: int, record: Record, instead: str) -> AnswerRow:
    row = record.row
    try:
        key = _id_key(row)
        qid = row[key]
        if not isinstance(qid, (str, int)) or isinstance(qid, bool):
            raise ValueError(f"an id that is neither text nor a whole number: {document.shown(qid)}")
        return AnswerRow(str(qid), _text(row, key, instead), row, record.at, key)
    except ValueError as err:
        raise DataError(f"answer {number} has {err}", at=record.at, fix=FORMS) from err


def _id_key(row: Mapping[str, Any]) -> str:
    """What the question's id is called in a row; ValueError where there is none, or two that differ."""
    if "doc_id" in row and "filtered_resps" in row:
        return "doc_id"
    keys = [key for key in IDS if row.get(key) is not None]
    if len({str(row[key]) for key in keys}) > 1:
        told = ", ".join(f"`{key}` {document.shown(row[key])}" for key in keys)
        raise ValueError(f"several ids that differ: {told}; which one is the question's? Take the others out")
    if keys or row.get("image") is not None:
        return keys[0] if keys else "image"  # a picture is the id where nothing else is: VizWiz's upload
    raise ValueError(f"neither `id` nor `question_id`; its keys: {', '.join(map(str, row)) or 'none'}")


def _text(row: Mapping[str, Any], key: str, instead: str) -> str:
    """The answer's text; ValueError where there is none, or two that differ."""
    if key == "doc_id":
        return _response(row["filtered_resps"])
    keys = [name for name in (("prediction",) if key == "index" else TEXTS) if name in row]  # its `answer` is the label
    if not keys and instead not in row:
        raise ValueError("no `prediction`" if key == "index" else "no `text`")
    if not keys:
        return ""
    text = row[keys[0]]
    if any(row[name] != text for name in keys):
        told = ", ".join(f"`{name}` {document.shown(row[name])}" for name in keys)
        raise ValueError(f"several texts that differ: {told}; which one is the model's? Take the others out")
    if key == "index" and (text is None or isinstance(text, (int, float))):  # as pandas writes a column
        return "" if text is None else str(text)
    if not isinstance(text, str):
        raise ValueError(f"a `{keys[0]}` that is no text: {document.shown(text)}")
    return text


def _response(value: Any) -> str:
    """What a model said in a log of lmms-eval: one text, in older versions in a list; ValueError for anything else."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise ValueError(f"no text in `filtered_resps`, but log-probabilities or several: {document.shown(value)}")
    return value


class Answers(dict[str, str]):
    """{question id: text}; the last row of an id counts. `rows` keeps every row, in the order they came."""

    def __init__(self, rows: Iterable[tuple[str, str]] = ()) -> None:
        self.rows = list(rows)
        super().__init__(self.rows)

    @classmethod
    def of(cls, answers: Mapping[str, str]) -> "Answers":
        """Any mapping as Answers: one row for each id."""
        return answers if isinstance(answers, cls) else cls(answers.items())


def one_each(answers: Answers) -> None:
    """DataError where a question is answered twice and differently."""
    differing = [qid for qid, texts in _texts_of(answers).items() if len(texts) > 1]
    if differing:
        told = ", ".join(document.shown(text) for text in _texts_of(answers)[differing[0]])
        what = f"{len(differing)} questions have several answers that differ: {few(differing)} ({told})"
        raise DataError(what, fix="keep one of each, or score leniently: the last one then counts")


def _texts_of(answers: Answers) -> dict[str, dict[str, None]]:
    """{question id: its texts} of the ids that are there more than once."""
    texts: dict[str, dict[str, None]] = {}
    if len(answers.rows) > len(answers):
        for qid, text in answers.rows:
            texts.setdefault(qid, {})[text] = None
    return texts


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
    if gaps == "strict":
        one_each(answers)
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
