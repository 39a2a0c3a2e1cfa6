"""The chat format: turns to tokens, with the trained ones marked by exact spans of the template, never by counting."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from mmalign.data import MARK, Turn
from mmalign.errors import CardError, DataError
from mmalign.io import files, limits, pretrained, whole
from mmalign.llms.rendering import render

ANCHOR = "x"  # a word is spelled as it is behind this one: with the tokenizer's own rule for leading spaces


@dataclass
class Encoded:
    """ids_S and trained_S of one sample; an image's place is `tokens` times the mark's id."""

    ids: list[int]
    trained: list[bool]


class Chat:
    """A tokenizer and a chat template whose answers stand between `{% generation %}` marks.

    template: jinja text, or the path of a file with it; None: the checkpoint's own. A checkpoint's own template
    without the marks can render prompts, not mark answers, and is refused for training. tokenizer: one that is there
    already; None: the checkpoint's.
    """

    def __init__(self, checkpoint: str, template: str | None = None, tokenizer: Any = None) -> None:
        self.checkpoint = checkpoint
        self.tokenizer: Any = tokenizer or pretrained.read(checkpoint, AutoTokenizer.from_pretrained)
        if template and (place := files.local(template)):
            with pretrained.reading(template):
                template = _read(place)
        self.template: str | None = template or self.tokenizer.chat_template
        if not self.template:
            raise CardError(f"{checkpoint} has no chat template", at="args.template", fix="name one in the card")
        with pretrained.reading(checkpoint):
            self._know()

    def _know(self) -> None:
        """The ids that the tokenizer has; it is tried once, for not all of its settings are looked at before."""
        if MARK not in self.tokenizer.get_vocab():
            self.tokenizer.add_special_tokens({"additional_special_tokens": [MARK]})  # never embedded: see vlm/model.py
        self.mark: int = self.tokenizer.convert_tokens_to_ids(MARK)
        self.pad: int = next(
            i for i in (self.tokenizer.pad_token_id, self.tokenizer.unk_token_id, self.tokenizer.eos_token_id, 0)
            if i is not None
        )  # fmt: skip
        self._tokens(ANCHOR)

    @property
    def marks_answers(self) -> bool:
        return "generation %}" in (self.template or "") or "generation -%}" in (self.template or "")

    def encode(self, turns: Sequence[Turn], tokens: Sequence[int] = ()) -> Encoded:
        """Turns as they are trained on; `tokens`: how many visual tokens each image becomes."""
        if not self.marks_answers:
            fix = "put {% generation %} ... {% endgeneration %} around the answer in the template"
            raise CardError(f"the chat template of {self.checkpoint} marks no answers", at="args.template", fix=fix)
        text, spans = self._render(turns, prompt=False)
        ids, offsets = self._tokens(text)
        trained = [any(start < e and end > s for s, e in spans) for start, end in offsets]
        return self._widened(ids, trained, tokens)

    def prompt(self, turns: Sequence[Turn], tokens: Sequence[int] = ()) -> list[int]:
        """Token ids up to where the next answer begins."""
        text, _ = self._render(turns, prompt=True)
        ids, _ = self._tokens(text)
        return self._widened(ids, [False] * len(ids), tokens).ids

    def answer(self, text: str) -> list[int]:
        """The token ids an answer has right behind a prompt, without the end of the turn."""
        turns = [Turn("user", ANCHOR), Turn("assistant", text)]
        rendered, spans = self._render(turns, prompt=False)
        if not spans or text not in rendered[spans[0][0] :]:
            what = f"the chat template of {self.checkpoint} does not mark an answer as it is"
            raise CardError(what, at="args.template", fix="{% generation %}{{ message.content }}{% endgeneration %}")
        ids, offsets = self._tokens(rendered)
        start, end = spans[0][0], spans[0][0] + rendered[spans[0][0] :].index(text) + len(text)
        return [i for i, (s, e) in zip(ids, offsets, strict=True) if s < end and e > start]

    def is_word(self, token: str) -> bool:
        """Whether a vocabulary token is a word of its own: three letters or more, begun as words are begun."""
        begun = token.startswith(("▁", "Ġ")) if self._marks_blanks else not token.startswith("##")
        return begun and len(bare := token.lstrip("▁Ġ")) >= 3 and bare.isalpha()

    @cached_property
    def _marks_blanks(self) -> bool:
        return any(token.startswith(("▁", "Ġ")) and len(token) > 3 for token in self.tokenizer.get_vocab())

    @cached_property
    def ends(self) -> set[int]:
        """The tokens that end an answer: what the template puts behind it, and the tokenizer's own end."""
        encoded = self.encode([Turn("user", ANCHOR), Turn("assistant", ANCHOR)])
        trained = [i for i, t in zip(encoded.ids, encoded.trained, strict=True) if t]
        behind = trained[len(self.answer(ANCHOR)) :][:1]
        return {i for i in (*behind, self.tokenizer.eos_token_id) if i is not None}

    def plain(self, text: str) -> list[int]:
        """A text without any chat format, behind the tokenizer's begin token where it has one."""
        bos = self.tokenizer.bos_token_id
        return ([] if bos is None else [bos]) + self._plain([text])[0]

    def behind(self, text: str, option: str) -> list[int]:
        """The token ids of a continuation of a plain text: those of both behind as many as the text has alone."""
        return self._plain([text + option])[0][len(self._plain([text])[0]) :]

    def text(self, ids: Sequence[int]) -> str:
        """Generated ids as text, special tokens left out, stripped at both ends."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def pieces(self, words: Sequence[str]) -> list[list[int]]:
        """The token ids each word has inside a sentence; empty where the tokenizer makes nothing of it."""
        stem = self._plain([ANCHOR])[0]
        spelled = self._plain([f"{ANCHOR} {word}" for word in words])
        return [ids[len(stem) :] if ids[: len(stem)] == stem else ids for ids in spelled]

    def _plain(self, texts: list[str]) -> list[list[int]]:
        return list(self.tokenizer(texts, add_special_tokens=False)["input_ids"])

    def _render(self, turns: Sequence[Turn], prompt: bool) -> tuple[str, list[tuple[int, int]]]:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        words = {"add_generation_prompt": prompt, **self.tokenizer.special_tokens_map}
        return render(self.template or "", messages, words, self.checkpoint)

    def _tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), list(encoded["offset_mapping"])

    def _widened(self, ids: list[int], trained: list[bool], tokens: Sequence[int]) -> Encoded:
        """Every mark repeated as often as its image has tokens."""
        if (marks := ids.count(self.mark)) != len(tokens):
            raise DataError(f"{marks} {MARK} marks for {len(tokens)} images", fix="one mark for each image")
        wide, counts = Encoded([], []), iter(tokens)
        for i, t in zip(ids, trained, strict=True):
            times = next(counts) if i == self.mark else 1
            wide.ids += [i] * times
            wide.trained += [t and i != self.mark] * times
        return wide


def _read(place: Path) -> str:
    try:
        return whole.read(str(place), limits.SETTINGS_BYTES, CardError).decode("utf-8")
    except (OSError, UnicodeDecodeError) as err:
        what = f"cannot read the chat template {place}: {getattr(err, 'strerror', None) or err}"
        raise CardError(what, at="args.template", fix="a file of jinja, or its text") from err
