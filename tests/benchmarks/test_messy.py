"""What the scorers without consensus take an answer for: each rule beside a slow one from its definition."""

import string
from collections.abc import Callable, Mapping

import pytest

from mmalign.benchmarks.gqa import PEERS as GQA_PEERS
from mmalign.benchmarks.gqa import converted
from mmalign.benchmarks.options import REFUSED, VERSIONS, option
from mmalign.benchmarks.pope import yes_or_no
from mmalign.benchmarks.scienceqa import letter
from tests.benchmarks.test_vqatext import messy

PIECES = [
    *"ABCDEZabcd", *".,:;!?*#()[]{} \n\t\u00a0", " ", " ", "answer is ", "The answer is ",
    "Correct  Answer\nIs **", "A. ", "é",
    "no", "No", "not", "Not", "yes", "nope", "red", "urn", "a red urn", "ANSWER", "is", "İ", "blue ", "Z ", "nan",
    "Cannot determine the answer", "Failed to obtain answer via API",
]  # fmt: skip


def slow_gqa(text: str) -> str:
    """LLaVA's conversion: every period at the end goes, then lower case."""
    while text.endswith("."):
        text = text[:-1]
    return text.lower()


def slow_pope(text: str) -> str:
    """The text before the first period, without commas, cut at single blanks; `no` where a piece is No, no or not."""
    pieces, piece = [], ""
    for character in text:
        if character == ".":
            break
        if character == " ":
            pieces, piece = [*pieces, piece], ""
        elif character != ",":
            piece += character
    return "no" if any(one in ("No", "no", "not") for one in [*pieces, piece]) else "yes"


def slow_letter(text: str) -> str:
    """A choice alone; a choice, a period, a blank; or one "The answer is X" with any character behind but a break."""
    if text in ("A", "B", "C", "D", "E"):
        return text
    if text[:1] in ("A", "B", "C", "D", "E") and text[1:3] == ". ":
        return text[0]
    phrase, letters, at = "The answer is ", [], 0
    while at < len(text):
        rest = text[at:]
        behind = rest[len(phrase) :]
        if rest.startswith(phrase) and len(behind) > 1 and behind[0] in string.ascii_uppercase and behind[1] != "\n":
            letters.append(behind[0])
            at += len(phrase) + 2
        else:
            at += 1
    return letters[0] if len(letters) == 1 else "FAILED"


@pytest.mark.parametrize(
    ("fast", "slow"), [(converted, slow_gqa), (yes_or_no, slow_pope), (letter, slow_letter)], ids=["gqa", "pope", "sqa"]
)
def test_a_reading_is_its_definition(fast: Callable[[str], str], slow: Callable[[str], str]) -> None:
    assert [text for text in messy(PIECES) if fast(text) != slow(text)] == []


def test_gqa_by_others_is_their_definition() -> None:
    def bare(text: str) -> str:
        return "".join(one for one in text.strip().lower() if one not in string.punctuation)

    for text, answer in zip(messy(PIECES, 3), [*list(messy(PIECES, 2))[1:], "x"], strict=True):
        for gold in (answer, text.upper()):
            assert GQA_PEERS["lmms-eval"][2](text, gold) == (bare(text) == bare(gold)), (text, gold)
            assert GQA_PEERS["vlmevalkit"][2](text, gold) == (text.strip().lower() == gold.strip().lower())


OPTIONS = {"A": "a red urn", "B": "blue", "C": "red"}


def slow_option(answer: str, options: Mapping[str, str], version: str) -> str | None:
    """VLMEvalKit's exact matching, step by step (BENCHMARKS 5.3): 1 and 1b, 2, 3."""
    if "Failed to obtain answer via API" not in answer:
        if "Cannot determine the answer" in answer:
            return REFUSED
        tokens = "".join(" " if one in ".()[],:;!*#{}" else one for one in answer).split()
        letters = sorted({token for token in tokens if token in options})
        place = tokens.index(letters[0]) if len(letters) == 1 else -1
        if place >= 0 and (version == "before-2025-08" or len(tokens) - place <= 4):
            return letters[0]
        if not letters and "Z" in tokens:
            return REFUSED
        named = slow_phrase(answer) if version == "head" else ""
        if named in options:
            return named
    low = answer.lower()
    if version != "before-2025-08" and len(low) > 2 * sum(len(text) for text in options.values()):
        return None
    within = [one for one, text in options.items() if low.find(text.lower()) >= 0]
    return within[0] if len(within) == 1 else None


def slow_phrase(answer: str) -> str:
    """The letter behind the first "answer is", in any case, with or without asterisks; there is no word boundary."""
    for at in range(len(answer)):
        rest = answer[at:]
        if rest[:6].lower() != "answer" or not rest[6:7].isspace():
            continue
        rest = rest[6:].lstrip()
        if rest[:2].lower() != "is" or not rest[2:3].isspace():
            continue
        rest = rest[2:].lstrip().lstrip("*")
        if rest[:1].upper() in ("A", "B", "C", "D"):
            return rest[0].upper()
    return ""


@pytest.mark.parametrize("version", VERSIONS)
def test_options_are_found_as_defined(version: str) -> None:
    different = [
        text for text in messy(PIECES) if option(text, OPTIONS, version) != slow_option(text, OPTIONS, version)
    ]
    assert different == []
