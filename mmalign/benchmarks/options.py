"""Which option an answer to a multiple-choice question means, by the rules of VLMEvalKit through its history.

A bare letter means the same under every version; they differ on answers in sentences.
"""

import re
from collections.abc import Mapping, Sequence

VERSIONS = ("head", "before-2026-06", "before-2025-08")  # the newest first: "head" is VLMEvalKit as of 2026-06
REFUSED = "Z"  # what the tool calls a refusal: no option, and not to be matched by text

_FAILED = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
# No word boundary and no case, as in the original: "The answer is blue" means B to it.
_ANSWER_IS = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
_LAST = 4  # a lone letter counts among the last tokens only


def option(answer: str, options: Mapping[str, str], version: str = "head") -> str | None:
    """The letter meant, REFUSED, or None where the answer cannot be resolved without a judge."""
    return _letter(answer, options, version) or _by_text(answer, options, limited=version != "before-2025-08")


def _letter(answer: str, options: Mapping[str, str], version: str) -> str | None:
    if _FAILED in answer:
        return None
    if any(refusal in answer for refusal in _REFUSALS):
        return REFUSED
    tokens = answer.translate(_MARKS).split()
    letters = [letter for letter in options if letter in tokens]
    if not letters and REFUSED in tokens:
        return REFUSED
    if len(letters) == 1 and _counts(tokens, letters[0], version):
        return letters[0]
    phrase = _ANSWER_IS.search(answer) if version == "head" else None
    return phrase[1].upper() if phrase and phrase[1].upper() in options else None


def _counts(tokens: Sequence[str], letter: str, version: str) -> bool:
    return version == "before-2025-08" or tokens.index(letter) >= len(tokens) - _LAST


def _by_text(answer: str, options: Mapping[str, str], limited: bool) -> str | None:
    """The one option whose text the answer contains; a long answer contains anything."""
    low = answer.lower()
    if limited and len(low) > 2 * sum(map(len, options.values())):
        return None
    letters = [letter for letter, text in options.items() if text.lower() in low]
    return letters[0] if len(letters) == 1 else None
