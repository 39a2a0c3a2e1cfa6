"""What VQA-style scorers compare: answers without their punctuation, articles and contractions, and consensus.

Four scorers share the steps and differ in detail: the VQA evaluation, the M4C evaluator, the VizWiz API and
VLMEvalKit.
"""

import json
import re
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from pathlib import Path

Normalise = Callable[[str], str]

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
ARTICLES = frozenset({"a", "an", "the"})
PERIODS = 32  # the official pattern's flag stands where the count belongs, so at most 32 periods go

# The official evaluation runs under Python 2, where \d is ASCII; the others under Python 3.
_DIGIT_COMMA = re.compile(r"[0-9],[0-9]")
_DIGIT_COMMA_3 = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?![0-9])")  # the look-behind is mistyped in the official pattern, and so without effect
_PERIOD_3 = re.compile(r"\.(?!\d)")
_PERIOD_BEHIND = re.compile(r"(?<!\d)\.(?!\d)")  # VLMEvalKit: with a look-behind that works
_MARKS = re.compile(f"[{re.escape(PUNCTUATION)}]")


def plain(text: str) -> str:
    """Without line breaks and tabs, stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@cache
def vqa(text: str) -> str:
    """The VQA evaluation's normal form of a plain text."""
    return _words(_periods(_marks(text, _DIGIT_COMMA), _PERIOD), "vqa")


@cache
def vqa3(text: str) -> str:
    """The same under Python 3, as lmms-eval has it."""
    return _words(_periods(_marks(text, _DIGIT_COMMA_3), _PERIOD_3), "vqa")


@cache
def m4c(text: str) -> str:
    """The M4C evaluator's form: commas and question marks go first, possessives are cut off."""
    token = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _words(_periods(_marks(plain(token), _DIGIT_COMMA_3), _PERIOD_3), "vqa")


@cache
def vizwiz(text: str) -> str:
    """The VizWiz API's form: the VQA steps with its own table of contractions."""
    return _words(_periods(_marks(plain(text), _DIGIT_COMMA), _PERIOD), "vizwiz")


@cache
def vlmevalkit(text: str) -> str:
    """VLMEvalKit's form: the VQA steps, but a period behind a digit stays."""
    return _words(_periods(_marks(plain(text), _DIGIT_COMMA_3), _PERIOD_BEHIND), "vqa")


def without_marks(text: str) -> str:
    """VLMEvalKit's punctuation step alone, as its yes/no reader uses it."""
    return _periods(_marks(text, _DIGIT_COMMA_3), _PERIOD_BEHIND)


def _marks(text: str, digit_comma: re.Pattern[str]) -> str:
    """Punctuation deleted where the original text has it beside a blank, or has a 1,000 anywhere; else a blank."""
    if not _MARKS.search(text):
        return text
    everywhere = digit_comma.search(text) is not None
    out = text
    for mark in set(_MARKS.findall(text)):
        out = out.replace(mark, "" if everywhere or f"{mark} " in text or f" {mark}" in text else " ")
    return out


def _periods(text: str, period: re.Pattern[str]) -> str:
    return period.sub("", text, count=PERIODS) if "." in text else text


def _words(text: str, table: str) -> str:
    """Lower case, number words as digits, no articles, contractions as the table has them."""
    replacements = _replacements(table)
    return " ".join([new for word in text.lower().split() if (new := replacements.get(word, word))])


@cache
def _replacements(table: str) -> dict[str, str]:
    """{word: what it becomes}, "" for nothing. No word is of two kinds, nor becomes one of another: one look is enough
    for the official three."""
    return {**contractions(table), **NUMBERS, **dict.fromkeys(ARTICLES, "")}


@cache
def contractions(name: str) -> dict[str, str]:
    """A table of tables/, which says where it comes from."""
    table = Path(__file__).parent / "tables" / f"contractions_{name}.json"
    return dict(json.loads(table.read_text(encoding="utf-8"))["contractions"])


def consensus(text: str, answers: Sequence[str], keys: Sequence[Hashable] | None = None) -> float:
    """How well a text agrees with people: for each answer, min(1, matches among the others / 3); the mean.

    keys: what makes two answers the same answer, so that neither is among the other's others; None: all are distinct.
    """
    matches = answers.count(text)
    if not matches:
        return 0.0
    same = [keys.count(key) for key in keys] if keys else [1] * len(answers)  # answers that count as the n-th
    return sum(min(1.0, (matches - same[n] * (answers[n] == text)) / 3) for n in range(len(answers))) / len(answers)


def as_written(turned: int, agreed: int, by_llava: float) -> str:
    """The note on questions where people's answers are compared as they are written.

    turned, agreed: how many would count otherwise if all were normalised, of those on which all people agree;
    by_llava: the whole score by that protocol, percent.
    """
    return (
        f"on {turned} of {agreed} questions where all people agree, only their spelling decides: the official rule "
        f"compares it as it is written. LLaVA normalises its answers before: {by_llava:.2f} by --protocol llava"
    )
