"""Which of our chat templates, whose answers are marked, is that of a model whose own template marks none."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmalign.errors import DataError
from mmalign.io.templates import MARKS
from mmalign.llms.rendering import render

UNMARKED = f"its chat template marks no answers: {MARKS}"
TALKS = [  # with a question to answer at the end, and with all answered
    [("user", "A x.")],
    [("user", "A x."), ("assistant", "B y."), ("user", "C z.")],
    [("user", "A x."), ("assistant", "B y.")],
    [("user", "A x."), ("assistant", "B y."), ("user", "C z."), ("assistant", "D w.")],
    [("system", "S v."), ("user", "A x."), ("assistant", "B y.")],
]


def ours(template: str, words: Mapping[str, Any], name: str) -> Path | None:
    """The file of our template that renders every conversation as another does which it takes; None: there is none.

    words: the tokenizer's special tokens by name. name: whose template it is, for messages.
    """
    theirs = [_rendered(template, talk, words, name) for talk in TALKS]
    if not any(theirs):
        return None
    for place in sorted((Path(__file__).parent / "templates").glob("*.jinja")):
        text = place.read_text(encoding="utf-8")
        if all(told in (None, _rendered(text, talk, words, place.name)) for told, talk in zip(theirs, TALKS)):
            return place
    return None


def _rendered(template: str, talk: list[tuple[str, str]], words: Mapping[str, Any], name: str) -> str | None:
    """None: the template refuses the turns."""
    messages = [{"role": role, "content": text} for role, text in talk]
    prompt = {"add_generation_prompt": talk[-1][0] == "user"}
    try:
        return render(template, messages, {**words, **prompt}, name)[0]
    except DataError:
        return None
