"""The marks of a conversation's images: where each stands, and what looks like one but is another model's."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mmalign.data import MARK, Turn
from mmalign.data.reasons import Unusable

# <image_1> <Image> <image 1> <ImageHere> <|image_pad|> <|vision_start|> <start_of_image> <image_soft_token> <img ...>
# [IMG] [image_1]: of MMMU, InternLM, Qwen, Gemma, Phi, Mistral, HTML. <IMG_CONTEXT> <im_patch> <image/> </image>
# <fake_token_around_image> <|media_pad|> ![](x.jpg): of InternVL, LLaVA's tokenizer, MiniCPM, Idefics, Kimi, Markdown
_FOREIGN = re.compile(
    r"<\|?(?:(?:start|begin|end)_?of_?|fake_token_around_|global[_-])?"
    r"(?:image|img|picture|photo|vision|video|audio|media)"
    r"(?:[ _:-]?(?:here|pad|start|end|begin|soft|token|placeholder|content|context|file|embeds?|feature|newline|"
    r"break|sep|bos|eos|\d{1,4}))*(?:\s?/?\|?>|(?=\s[^<>]*>))"
    r"|<im_(?:start|end|patch)>|<\|(?:vis|boi|eoi|patch)(?:_\w{1,12})?\|>|</image>|&lt;image&gt;"
    r"|\[(?:image|img)(?:[ _-]?(?:\d{1,4}|break|end))?\](?!\()|!\[[^\[\]]{0,200}\](?=\([^()\s]{1,500}\))",
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
    texts = (turn.text for turn in turns if _may_hold(turn.text))
    yield from dict.fromkeys(
        _shown(match[0]) for text in texts for match in _FOREIGN.finditer(text) if match[0] != MARK
    )


def _may_hold(text: str) -> bool:
    return "[" in text or "&lt;" in text or text.count("<") > text.count(MARK)


def _shown(mark: str) -> str:
    if mark.startswith("!["):
        return "![...](...)"
    return mark if mark.endswith((">", "]", ";")) else f"{mark} ...>"


def note(mark: str) -> str:
    return f"rows with {mark} in a text, where it stays text: the mark of an image is {MARK}"
