"""Conversations as a whole model is trained on them: its own processor's batch, and which of its tokens are answers.

The model's chat template writes a conversation with a mark on each side of every answer; its processor puts as many
tokens as an image has in place of the image's mark; and where it then calls its tokenizer, the marks are taken out and
the text is spelled piece by piece. So no token crosses the border of a prompt and its answer, and what stands in front
of an answer is what the model is asked.

Letters: R rows, S positions, B images.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.data import Turn
from mmalign.data.reasons import Unusable
from mmalign.errors import CheckError
from mmalign.integrations.asking import Asking, Images
from mmalign.integrations.declared import Parts
from mmalign.llms.chat import Chat
from mmalign.vision.picture import rgb
from mmalign.vlm.batch import IGNORED

BEGIN, END = "\U0010ff00", "\U0010ff01"  # of an answer; characters of private use, which no special token has
ANSWER = "zqxj"  # an answer that no template has in what it puts behind one


@dataclass
class Row:
    """A conversation in the model's chat format. text: with BEGIN and END around each answer.

    weights: of each answer. stand_ins: see llms/spelling.py. behind: what is written behind the text, and trained.
    idle: it is there to be read, and need not have anything to learn.
    """

    text: str
    images: Images
    weights: list[float]
    stand_ins: dict[str, str]
    behind: tuple[str, ...] = ()
    idle: bool = False


@dataclass
class Spelled:
    """A row's token ids, and whether each is trained."""

    ids: list[int]
    trained: list[bool]

    def lost(self, most: int) -> int:
        """Trained tokens behind the first `most`."""
        return sum(self.trained[most:])


@dataclass
class TaughtBatch:
    """A batch of the model's own processor with labels, on the CPU. lost: trained tokens of each row that were cut.

    refused: rows that cannot be trained on, by their number; where there are any, there is no batch.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    refused: dict[int, Unusable] = field(default_factory=dict)


class Border(NamedTuple):
    """How a chat format writes an answer: behind what asks for one; blanks that are trained with it; then what ends it,
    a special token and the blanks before that."""

    ask: str
    blanks: str
    end: str


class Teaching:
    """Rows and batches for one model. Raises CheckError for a chat format whose answers are not where it asks."""

    def __init__(self, parts: Parts, chat: Chat) -> None:
        self.parts, self.chat, self.asking = parts, chat, Asking(parts, chat)
        self.formatted = parts.template is not None
        _ = self._border  # said before the first row

    def row(self, turns: Sequence[Turn], images: Images) -> Row:
        """A conversation, and its pictures. Raises Unusable for one that the model's chat format does not take."""
        answers = [turn for turn in turns if turn.role == "assistant"]
        if odd := [turn.weight for turn in answers if turn.weight not in (0.0, 1.0)]:
            detail = f"an answer counts {odd[0]:g}, and a whole model's own loss counts each fully or not at all"
            raise Unusable("flags", detail, fix="weights of 0 and 1")
        weights = [turn.weight for turn in answers]
        texts, stand_ins = self.chat.spelling.set_apart([turn.text for turn in turns])
        own = [replace(turn, text=text) for turn, text in zip(turns, texts, strict=True)]
        if not self.formatted:
            return self._bare(own, images, weights, stand_ins)
        marked = [replace(t, text=f"{BEGIN}{t.text.strip()}{END}") if t.role == "assistant" else t for t in own]
        text, border = self.asking.prompt(marked, len(images), ready=False), self._border
        if text.count(BEGIN) != len(answers) or text.count(END) != len(answers):
            raise Unusable("template", "the model's chat template does not write every answer as it is")
        if not all(before.endswith(f"{border.ask}{border.blanks}") for before in text.split(BEGIN)[:-1]):
            raise Unusable("template", "the model's chat template does not write every answer where it asks for one")
        if border.end or turns[-1].role != "assistant":
            return Row(text, images, weights, stand_ins)
        return Row(text[: text.rindex(END) + 1], images, weights, stand_ins, behind=self._stop)

    def _bare(self, turns: list[Turn], images: Images, weights: list[float], stand_ins: dict[str, str]) -> Row:
        """Of a model without a chat format: a text that is answered."""
        if [turn.role for turn in turns].count("assistant") != 1 or turns[-1].role != "assistant":
            detail = "the model has no chat format: it learns one answer, behind one text"
            raise Unusable("template", detail, fix="rows of a question and its answer")
        text = self.asking.prompt(turns[:-1], len(images))
        return Row(text, images, weights, stand_ins, behind=(turns[-1].text.strip(), *self._stop))

    @property
    def _stop(self) -> tuple[str, ...]:
        """What ends an answer that the chat format does not end."""
        eos = self.parts.tokenizer.eos_token
        return (str(eos),) if eos else ()

    @cached_property
    def _border(self) -> "Border":
        if not self.formatted:
            return Border("", "", "")
        question, answer = Turn("user", "x"), Turn("assistant", f"{BEGIN}{ANSWER}{END}")
        asked, prompt = (self.asking.prompt([question], 0, ready) for ready in (False, True))
        whole = self.asking.prompt([question, answer], 0, ready=False)
        front, _, behind = whole.partition(f"{BEGIN}{ANSWER}{END}")
        blanks = front.removeprefix(prompt)
        if not whole.startswith(prompt) or blanks.strip() or len(front) == len(whole):
            what = f"the chat template of a {self.parts.model.config.model_type} model asks with {prompt!r}"
            what += f", and writes an answer behind {front!r}"
            raise CheckError(what, at="model.vlm", fix="a model whose template answers where it asks")
        special = self.chat.spelling.special.search(behind)
        end = behind[: special.end()] if special and not behind[: special.start()].strip() else ""
        return Border(prompt.removeprefix(asked) if prompt.startswith(asked) else "", blanks, end)

    # Spelled

    def batch(self, rows: Sequence[Row], max_length: int) -> TaughtBatch:
        """Rows one below the other, padded on the right; each cut at max_length tokens, but those that are idle.

        What cuts into an image, or leaves nothing to learn, is refused, see `TaughtBatch`.
        """
        try:
            inputs, each = self._processed(rows)
        except Exception as err:  # a processor may raise whatever Python does
            if len(rows) > 1:
                alone = {n: own for n, row in enumerate(rows) for own in self.batch([row], max_length).refused.values()}
                if alone:
                    return TaughtBatch(refused=alone)
            reason = (str(err).strip() or type(err).__name__).splitlines()[0]
            return TaughtBatch(refused={0: Unusable("other", f"the model's processor refuses it: {reason}")})
        pairs = enumerate(zip(rows, each, strict=True))
        refused = {n: own for n, (row, one) in pairs if (own := self._refused(row, one, max_length))}
        if refused:
            return TaughtBatch(refused=refused)
        shape = inputs["input_ids"].shape
        idle = max([len(one.ids) for row, one in zip(rows, each, strict=True) if row.idle], default=0)
        longest = min(max(max_length, idle), shape[1])
        inputs = {name: own[:, :longest] if own.shape == shape else own for name, own in inputs.items()}
        trained_RS = torch.zeros(shape, dtype=torch.bool)
        for number, one in enumerate(each):
            trained_RS[number, : len(one.ids)] = torch.tensor(one.trained)
        trained_RS[:, 0] = trained_RS[:, max_length:] = False  # nothing predicts it; what is cut
        inputs["labels"] = inputs["input_ids"].masked_fill(~trained_RS[:, :longest], IGNORED)
        return TaughtBatch(inputs, [one.lost(max_length) for one in each])

    def _processed(self, rows: Sequence[Row]) -> tuple[dict[str, Tensor], list[Spelled]]:
        """What the processor makes of rows, and how each was spelled."""
        words, texts = _Words(self, rows), [row.text for row in rows]
        pictures = [[rgb(image) for image in row.images] for row in rows]
        if not any(pictures):
            kinds = "token_type_ids" in self.parts.processor.model_input_names
            return {n: torch.tensor(own) for n, own in words(texts, return_token_type_ids=kinds).items()}, words.spelled
        processor = copy.copy(self.parts.processor)
        processor.tokenizer = words
        batch = processor(text=texts, images=pictures, return_tensors="pt", padding=True)
        return {n: own for n, own in batch.items() if isinstance(own, Tensor) and n != "labels"}, words.spelled

    def _refused(self, row: Row, one: Spelled, most: int) -> Unusable | None:
        if row.idle:
            return None
        if self.parts.image_id in one.ids[most:]:
            return Unusable("cut", f"max_length {most} cuts into an image", fix="raise max_length")
        if not any(one.trained[1:most]):
            fix = "an empty answer, or max_length cuts it away"
            return Unusable("cut", f"no trained token is left in it within max_length {most}", fix=fix)
        return None

    def spelled(self, text: str, row: Row, special: bool) -> Spelled:
        """The ids of a row's text, its images' marks expanded. special: whether what begins a text may be put there."""
        pieces, numbers = self._pieces(text)
        pieces += row.behind
        numbers += [len(row.weights) - 1] * len(row.behind)
        bos = self.parts.tokenizer.bos_token
        begin = self.chat.begin if special and not (bos and text.startswith(bos)) else []
        one = Spelled(list(begin), [False] * len(begin))
        for ids, number in zip(self.chat.spelling.ids(pieces, row.stand_ins), numbers, strict=True):
            counts = number is not None and row.weights[number] > 0
            one.ids += ids
            one.trained += [counts and i != self.parts.image_id for i in ids]
        return one

    def _pieces(self, text: str) -> tuple[list[str], list[int | None]]:
        """A text's pieces, and the answer that each is of; an answer's end is a piece of its own."""
        _, blanks, end = self._border
        pieces, numbers = list[str](), list[int | None]()
        before, *answers = text.split(BEGIN)
        for number, own in enumerate(answers):
            answer, _, behind = own.partition(END)
            ended = end if behind.startswith(end) else ""
            pieces += [before.removesuffix(blanks), f"{blanks}{answer}", ended]
            numbers += [None, number, number]
            before = behind.removeprefix(ended)
        return [*pieces, before], [*numbers, None]


class _Words:
    """Stands for the tokenizer while the processor makes a batch of rows; else it is the model's own."""

    def __init__(self, teaching: Teaching, rows: Sequence[Row]) -> None:
        self._teaching, self._rows = teaching, rows
        self.spelled: list[Spelled] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._teaching.parts.tokenizer, name)

    def __call__(self, text: Sequence[str], *unused: Any, **options: Any) -> "_Inputs":
        special = bool(options.get("add_special_tokens", True))
        for own, row in zip(text, self._rows, strict=True):  # a processor may write into a text without images, too
            self.spelled.append(self._teaching.spelled(own if row.images else row.text, row, special))
        longest = max(len(one.ids) for one in self.spelled)

        def padded(rows: list[list[int]], value: int) -> list[list[int]]:
            return [row + [value] * (longest - len(row)) for row in rows]

        inputs = _Inputs(
            {
                "input_ids": padded([one.ids for one in self.spelled], self._teaching.chat.pad),
                "attention_mask": padded([[1] * len(one.ids) for one in self.spelled], 0),
            }
        )
        if options.get("return_token_type_ids"):  # 1: an answer behind a text that is read at once
            apart = not self._teaching.formatted
            inputs["token_type_ids"] = padded([[int(apart and t) for t in one.trained] for one in self.spelled], 0)
        return inputs


class _Inputs(dict[str, list[list[int]]]):
    """What a tokenizer returns: rows of one length."""

    def char_to_token(self, *place: int) -> int:
        """Idefics 3's processor asks for it, and then has no use for what it is told."""
        return 0
