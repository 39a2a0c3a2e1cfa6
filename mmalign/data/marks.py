"""The marks of a conversation's images: where each stands, and what looks like one but is another model's."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mmalign.data import MARK, Turn
from mmalign.data.reasons import Unusable

# <image_1> <Image> <image 1> <ImageHere> <|image_pad|> <|vision_start|> <start_of_image> <image_soft_token> <img ...>
# [IMG] [image_1]: of MMMU, InternLM, Qwen, Gemma, Phi, Mistral, HTML
_FOREIGN = re.compile(
    r"<\|?(?:(?:start|begin|end)_of_)?(?:image|img|picture|photo|vision|video|audio)"
    r"(?:[ _-]?(?:here|pad|start|end|soft|token|placeholder|content|file|embed|embeds|\d{1,4}))*(?:\|?>|(?=\s[^<>]*>))"
    r"|\[(?:image|img)(?:[ _-]?\d{1,4})?\]",
    re.IGNORECASE,
)


def place(turns: Sequence[Turn], images: int) -> list[Turn]:
    """One mark for each image. A turn's only mark goes in front, as in LLaVA; several stay where they are.

    A conversation without any mark gets them all in front of its first question.
    """
    turns = list(turns)
    marks = sum(turn.text.count(MARK) for turn in turns)
    if not marks and images:
        first = next(number for number, turn in enumerate(turns) if turn.role == "user")
        texts = [*[MARK] * images, *filter(None, [turns[first].text.strip()])]
        turns = [*turns[:first], replace(turns[first], text="\n".join(texts)), *turns[first + 1 :]]
    elif marks != images:
        other = next(foreign(turns), "")
        fix = f"{other} is no mark: {MARK} is" if other else ""
        raise Unusable("marks", f"{marks} {MARK} marks for {images} images", fix=fix)
    if images:
        turns = [_mark_in_front(turn) if turn.text.count(MARK) == 1 else turn for turn in turns]
    for number, turn in enumerate(turns, 1):
        if not turn.text.strip():
            raise Unusable("blank", f"turn {number}, the {turn.role}'s, says nothing")
    return turns


def _mark_in_front(turn: Turn) -> Turn:
    text = turn.text.replace(MARK, "").strip()
    return replace(turn, text=f"{MARK}\n{text}" if text else MARK)


def foreign(turns: Sequence[Turn]) -> Iterator[str]:
    """The other models' marks in the turns, each once, as they are written; an HTML one without its attributes."""
    texts = (turn.text for turn in turns if "[" in turn.text or turn.text.count("<") > turn.text.count(MARK))
    yield from dict.fromkeys(
        match[0] if match[0].endswith((">", "]")) else f"{match[0]} ...>"
        for text in texts for match in _FOREIGN.finditer(text) if match[0] != MARK
    )  # fmt: skip


def note(mark: str) -> str:
    return f"rows with {mark} in a text, where it stays text: the mark of an image is {MARK}"
