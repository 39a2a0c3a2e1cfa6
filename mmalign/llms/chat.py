"""The chat format: turns to tokens, with the trained ones marked by exact spans of the template, never by counting."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from transformers import AutoTokenizer

from mmalign.data import MARK, Turn
from mmalign.data.reasons import Unusable
from mmalign.errors import CardError, DataError
from mmalign.io import pretrained, templates
from mmalign.llms import gguf
from mmalign.llms.rendering import render
from mmalign.llms.spelling import Spelling

ANCHOR = "x"  # a word is spelled as it is behind this one: with the tokenizer's own rule for leading spaces
PLAIN_BEGIN = "plain_text_begin"  # in an exported tokenizer_config.json: the ids that plain texts begin with
ANSWER = "zqxj"  # an answer that no template has in what it puts behind one


@dataclass
class Encoded:
    """ids_S and weights_S of one sample; an image's place is `tokens` times the mark's id.

    weights: how much predicting each token counts; 0: it is read and not trained. lost: trained tokens cut away.
    """

    ids: list[int]
    weights: list[float]
    lost: int = 0

    @property
    def trained(self) -> list[bool]:
        return [weight > 0 for weight in self.weights]


@dataclass
class _Piece:
    """A stretch of a rendered text. answer: the number of the answer it is of; None: of none."""

    text: str
    answer: int | None = None


class Chat:
    """A tokenizer and a chat template whose answers stand between `{% generation %}` marks.

    template: jinja text, or the path of a file with it; None: the checkpoint's own. A checkpoint's own template
    without the marks can render prompts, not mark answers, and is refused for training. tokenizer: one that is there
    already; None: the checkpoint's. bos: whether a plain text stands behind the begin token; None: as the tokenizer
    does it by itself.
    """

    def __init__(
        self, checkpoint: str, template: str | None = None, tokenizer: Any = None, bos: bool | None = None
    ) -> None:
        self.checkpoint, self.bos = checkpoint, bos
        self.tokenizer: Any = tokenizer or pretrained.read(gguf.place(checkpoint), AutoTokenizer.from_pretrained)
        if template:
            with pretrained.reading(template):
                template = templates.text(template)
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
        self._plain([ANCHOR])
        self.spelling = Spelling(self.tokenizer, MARK)

    @property
    def marks_answers(self) -> bool:
        return templates.marks_answers(self.template or "")

    def encode(self, turns: Sequence[Turn], tokens: Sequence[int] = (), prompt_weight: float = 0.0) -> Encoded:
        """Turns as they are trained on: an answer's own tokens and its end, with the weight of the turn.

        tokens: how many visual tokens each image becomes. prompt_weight: of all that is no answer.

        No token crosses the border of prompt and answer, so that `prompt` gives the beginning of it. A special token's
        string inside a turn's text stays text: it is spelled with ordinary tokens, never taken for the token. Only
        MARK is one wherever it stands.
        """
        if not self.marks_answers:
            what = f"the chat template of {self.checkpoint} marks no answers"
            raise CardError(what, at="args.template", fix=templates.MARKS)
        pieces, stand_ins = self._pieces(turns, prompt=False)
        weights = self._weights(turns, pieces)
        ids_of = list(self.spelling.ids([piece.text for piece in pieces], stand_ins))
        weight_of = [prompt_weight if piece.answer is None else weights[piece.answer] for piece in pieces]
        ids = [i for ids in ids_of for i in ids]
        return self._widened(ids, [w for ids, w in zip(ids_of, weight_of, strict=True) for _ in ids], tokens)

    def fitted(
        self, turns: Sequence[Turn], tokens: Sequence[int], max_length: int, prompt_weight: float = 0.0
    ) -> Encoded:
        """As `encode`, cut at max_length tokens; Unusable where that cuts into an image, or leaves nothing to learn."""
        whole = self.encode(turns, tokens, prompt_weight)
        ids, weights = whole.ids[:max_length], whole.weights[:max_length]
        if self.mark in whole.ids[max_length:]:
            raise Unusable("cut", f"max_length {max_length} cuts into an image", fix="raise max_length")
        if not any(weights[1:]):
            fix = "an empty answer, or max_length cuts it away"
            raise Unusable("cut", f"no trained token is left in it within max_length {max_length}", fix=fix)
        return Encoded(ids, weights, lost=sum(weight > 0 for weight in whole.weights[max_length:]))

    def prompt(self, turns: Sequence[Turn], tokens: Sequence[int] = ()) -> list[int]:
        """Token ids up to where the next answer begins."""
        pieces, stand_ins = self._pieces(turns, prompt=True)
        ids = [i for ids in self.spelling.ids([piece.text for piece in pieces], stand_ins) for i in ids]
        return self._widened(ids, [0.0] * len(ids), tokens).ids

    def at_once(self, turns: Sequence[Turn], tokens: Sequence[int], prompt: bool) -> list[int]:
        """The ids of the whole text as a tokenizer spells it at once. They are those of `encode` and `prompt` but where
        a token crosses the border of an answer, such as one of a blank in front of it and its first letters."""
        text, _ = self._render(turns, prompt)
        ids = self._plain([text])[0]
        return self._widened(ids, [0.0] * len(ids), tokens).ids

    def answer(self, text: str) -> list[int]:
        """The token ids an answer has right behind a prompt, without the end of the turn."""
        pieces, stand_ins = self._pieces([Turn("user", ANCHOR), Turn("assistant", text)], prompt=False)
        number = next((number for number, piece in enumerate(pieces) if piece.answer is not None), None)
        shown = "" if number is None else "".join(stand_ins.get(c, c) for c in pieces[number].text)
        if number is None or text.strip() not in shown:
            what = f"the chat template of {self.checkpoint} does not mark an answer as it is"
            raise CardError(what, at="args.template", fix="{% generation %}{{ message.content }}{% endgeneration %}")
        return list(self.spelling.ids([piece.text for piece in pieces], stand_ins))[number]

    def left_out(self, turns: Sequence[Turn]) -> list[str]:
        """The roles of turns whose text the template leaves out."""
        pieces, stand_ins = self._pieces(turns, prompt=False)
        text = "".join(stand_ins.get(character, character) for piece in pieces for character in piece.text)
        said = ((turn.role, turn.text.replace(MARK, "").strip()) for turn in turns)
        return list(dict.fromkeys(role for role, own in said if own not in text))

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
        """A text without any chat format, behind what begins one."""
        return [*self.begin, *self._plain([text])[0]]

    @cached_property
    def begin(self) -> list[int]:
        """What stands before a plain text: what the tokenizer puts there by itself, or what `bos` says in its place.

        An exported tokenizer, which leaves that to the template, says what it was (llms/plain.py).
        """
        if self.bos is None:
            if isinstance(own := self.tokenizer.init_kwargs.get(PLAIN_BEGIN), list):
                return own
            whole, bare = self.tokenizer([ANCHOR])["input_ids"][0], self._plain([ANCHOR])[0]
            return next((whole[:n] for n in range(len(whole)) if whole[n : n + len(bare)] == bare), [])
        if self.bos and self.tokenizer.bos_token_id is None:
            what = f"the tokenizer of {self.checkpoint} has no begin token"
            raise CardError(what, at="args.bos", fix="bos: false, or leave it out")
        return [self.tokenizer.bos_token_id] if self.bos else []

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

    def _pieces(self, turns: Sequence[Turn], prompt: bool) -> tuple[list[_Piece], dict[str, str]]:
        """The rendered text in pieces, and what stands in it for special tokens' strings, see spelling.py.

        An answer is a piece, and its end another one, so that the end is always the same token.
        """
        texts, stand_ins = self.spelling.set_apart([turn.text for turn in turns])
        text, spans = self._render([replace(t, text=own) for t, own in zip(turns, texts, strict=True)], prompt)
        pieces, at = [], 0
        for number, (start, end) in enumerate(spans):
            border = max(start, end - len(self._end)) if text[start:end].endswith(self._end) else end
            pieces += [_Piece(text[at:start]), _Piece(text[start:border], number), _Piece(text[border:end], number)]
            at = end
        return [*pieces, _Piece(text[at:])], stand_ins

    @cached_property
    def _end(self) -> str:
        """What the template puts behind an answer, inside its marks."""
        with suppress(DataError):
            text, spans = self._render([Turn("user", ANSWER), Turn("assistant", ANSWER)], prompt=False)
            return text[slice(*spans[0])].rpartition(ANSWER)[2] if spans else ""
        return ""

    def _weights(self, turns: Sequence[Turn], pieces: Sequence[_Piece]) -> list[float]:
        """The weight of each answer that the template marks."""
        weights = [turn.weight for turn in turns if turn.role == "assistant"]
        marked = 1 + max((piece.answer for piece in pieces if piece.answer is not None), default=-1)
        if marked == len(weights):
            return weights
        if set(weights) <= {1.0}:
            return [1.0] * marked
        what = f"the chat template of {self.checkpoint} marks {marked} answers of {len(weights)}, and they have weights"
        raise DataError(what, fix="a template that marks every answer")

    def _render(self, turns: Sequence[Turn], prompt: bool) -> tuple[str, list[tuple[int, int]]]:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        words = {"add_generation_prompt": prompt, **self.tokenizer.special_tokens_map}
        return render(self.template or "", messages, words, self.checkpoint)

    def _widened(self, ids: list[int], weights: list[float], tokens: Sequence[int]) -> Encoded:
        """Every mark repeated as often as its image has tokens."""
        if (marks := ids.count(self.mark)) != len(tokens):
            raise DataError(f"{marks} {MARK} marks for {len(tokens)} images", fix="one mark for each image")
        wide, counts = Encoded([], []), iter(tokens)
        for i, weight in zip(ids, weights, strict=True):
            times = next(counts) if i == self.mark else 1
            wide.ids += [i] * times
            wide.weights += [weight if i != self.mark else 0.0] * times
        return wide
