"""Answers that name their question by the number of a row of some table: whose row it is, and whether it asks the same.

VLMEvalKit's result files have the `index` of its own TSV; logs of lmms-eval have `doc_id`, the row of its parquet
files, and often the question's id in what a task keeps (`submission`, `gpt_eval_score`). A row by its number alone is
taken only where the question it was asked is told, and is the one here.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from mmalign.benchmarks import Question
from mmalign.benchmarks.answers import AnswerRow
from mmalign.benchmarks.records import IDS
from mmalign.errors import DataError
from mmalign.io import document

NUMBERS = ("doc_id", "index")
FIX = "name the files those answers were made with: --data FOLDER"


def question_ids(
    rows: Sequence[AnswerRow],
    questions: Callable[[], Sequence[Question]],
    question_id: Callable[[AnswerRow], str],
    index_is_id: bool = False,
    logs_have_ids: bool = True,
) -> list[str]:
    """The question's id for each row; DataError for one that asks something else than its question here.

    index_is_id: VLMEvalKit's index is the id, whatever files are there. logs_have_ids: lmms-eval logs the same ids.
    """
    if not any(row.key in NUMBERS for row in rows):
        return [question_id(row) for row in rows]
    by_id = {question.id: question for question in questions()}
    logged = iter(_logged([row for row in rows if row.key == "doc_id"], by_id, question_id, logs_have_ids))
    ids = [next(logged) if row.key == "doc_id" else question_id(row) for row in rows]
    for row, qid in zip(rows, ids, strict=True):
        if row.key in NUMBERS and qid in by_id:
            _check(row, by_id[qid], row.key == "index" and index_is_id)
    return ids


def _logged(
    rows: Sequence[AnswerRow], known: Collection[str], question_id: Callable[[AnswerRow], str], has_ids: bool
) -> list[str]:
    """The ids that lmms-eval's rows keep, where each keeps a known one of its own; else by their numbers."""
    ids = [_kept_id(row, question_id) if has_ids else None for row in rows]
    if all(qid in known for qid in ids) and len(set(ids)) == len({row.id for row in rows}):
        return [qid for qid in ids if qid is not None]
    order = list(known)
    return [order[int(row.id)] if row.id.isdecimal() and int(row.id) < len(order) else row.id for row in rows]


def _kept_id(row: AnswerRow, question_id: Callable[[AnswerRow], str]) -> str | None:
    """The id in what a task keeps of a question; None where it keeps none, or several."""
    parts = [part for part in row.raw.values() if isinstance(part, dict)]
    kept = {str(part[key]) for part in parts for key in IDS if part.get(key) is not None}
    kept = kept or {str(part["image"]) for part in parts if isinstance(part.get("image"), str)}
    return question_id(row._replace(id=kept.pop())) if len(kept) == 1 else None


def _check(row: AnswerRow, question: Question, sure: bool) -> None:
    """DataError where a row was asked something else than the question, or, unless it is sure, does not say what."""
    asked: Any = row.raw.get("input" if row.key == "doc_id" else "question")
    told = f"`{row.key}` {row.id}"
    if not isinstance(asked, str):
        if not sure:
            what = f"{told} is the number of a row elsewhere, and nothing says what it asks"
            raise DataError(what, at=row.at, fix="give the answers the questions' ids, or keep their `question`")
    elif not _same(asked, question.text):
        what = f"{told} was asked {document.shown(asked)}; here that is {document.shown(question.text)}"
        raise DataError(what, at=row.at, fix=FIX)


def _same(asked: str, text: str) -> bool:
    """Whether two prompts are about one question: either's first line is in the other, but for all but letters and
    digits. Hints, OCR tokens, options and suffixes differ between toolkits."""
    return _letters(_first_line(text)) in _letters(asked) or _letters(_first_line(asked)) in _letters(text)


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
