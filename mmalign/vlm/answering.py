"""Questions of a benchmark put to a model: greedy answers, or the likeliest of some options.

Letters: B images, R rows, S positions, N rows, Q visual tokens of an image, D width of the language model, V its
vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmalign.benchmarks import Benchmark, Cut, Question
from mmalign.data import MARK, Turn
from mmalign.vlm.likelihood import likelihoods
from mmalign.vlm.prefix import Group, Pass

if TYPE_CHECKING:
    from mmalign.vlm.model import VLM


@dataclass
class Prompt:
    """A question as the language model reads it."""

    question: Question
    ids: list[int] = field(default_factory=list)
    options: list[list[int]] = field(default_factory=list)  # the ids of each option behind it


def answers(vlm: "VLM", bench: Benchmark, questions: Sequence[Question], batch: int) -> Iterator[tuple[Question, str]]:
    """(question, answer), pass by pass. Greedy, or the likeliest option; questions about one image share its prefix,
    and every distinct (image, text) is answered once. batch: questions a pass."""
    same: dict[tuple[Any, str, tuple[str, ...]], list[Question]] = {}
    for question in questions:
        same.setdefault((_key(question.image), question.text, question.options), []).append(question)
    responder = Responder(vlm, bench)
    for groups in _passes([alike[0] for alike in same.values()], batch):
        for question, text in responder.answer(groups):
            yield from ((one, text) for one in same[_key(question.image), question.text, question.options])


def _passes(questions: Sequence[Question], batch: int) -> Iterator[list[list[Prompt]]]:
    """Lists of groups, each the questions about one image or of one family; groups of similar length together."""
    by_image: dict[Any, list[Prompt]] = {}
    for question in questions:
        text = question.image is None
        alike = (question.family or question.id) if text else _key(question.image)
        by_image.setdefault((text, alike, bool(question.options)), []).append(Prompt(question))
    groups = [part for prompts in by_image.values() for part in _batched(prompts, batch)]
    groups.sort(key=lambda prompts: (bool(prompts[0].question.options), sum(len(p.question.text) for p in prompts)))
    ready: list[list[Prompt]] = []
    for group in groups:
        options = bool(group[0].question.options)
        if ready and (sum(map(len, ready)) + len(group) > batch or bool(ready[0][0].question.options) != options):
            yield ready
            ready = []
        ready.append(group)
    if ready:
        yield ready


class Responder:
    """Answers groups of prompts, each group about one image, in one pass."""

    def __init__(self, vlm: "VLM", bench: Benchmark) -> None:
        self.vlm, self.llm, self.chat, self.bench = vlm, vlm.llm, vlm.llm.chat, bench
        self._options: dict[str, list[int]] = {}  # an option: its token ids behind a chat prompt

    @torch.no_grad()
    def answer(self, groups: list[list[Prompt]]) -> list[tuple[Question, str]]:
        packed: list[Group] = []
        for prompts in groups:
            visual_QD = self._visual_of(prompts[0].question)
            for prompt in prompts:
                self._spell(prompt, 0 if visual_QD is None else len(visual_QD))
            packed += Group.of([prompt.ids for prompt in prompts], visual_QD, self.chat.mark)
        asked = [prompt for prompts in groups for prompt in prompts]
        texts = self._choose(packed, asked) if asked[0].options else self._write(packed)
        return list(zip((prompt.question for prompt in asked), texts, strict=True))

    def _visual_of(self, question: Question) -> Tensor | None:
        if question.image is None:
            return None
        return self.vlm.encode(self.vlm.pixels(self.bench.image(question.image)))[0][0]

    def _spell(self, prompt: Prompt, tokens: int) -> None:
        """The prompt as token ids; `tokens`: how many its image becomes."""
        question = prompt.question
        if question.plain:
            prompt.ids, prompt.options = self._plain(question)
        else:
            prompt.ids, prompt.options = self._chat(question, tokens), [self._option(o) for o in question.options]

    def _plain(self, question: Question) -> tuple[list[int], list[list[int]]]:
        """A text without the chat template, shortened to the model's context, if need be by cutting off its beginning.

        Letters are spelled as lm-evaluation-harness does: what they add to the tokens of the prompt.
        """
        ids = self.chat.plain(question.text)
        options = [self.chat.behind(question.text, option) for option in question.options]
        room = self.llm.context + 1 - max(map(len, options), default=self.bench.max_new_tokens)
        if len(ids) > room and (shorter := self.bench.shorter(question)):
            return self._plain(shorter)
        return ids[-room:], options

    def _chat(self, question: Question, tokens: int) -> list[int]:
        text = f"{MARK}\n{question.text}" if tokens else question.text
        return self.chat.prompt([Turn("user", text)], [tokens] if tokens else [])

    def _option(self, option: str) -> list[int]:
        if option not in self._options:
            self._options[option] = self.chat.answer(option)
        return self._options[option]

    def _write(self, groups: Sequence[Group]) -> list[str]:
        """Greedy answers; Cut where one has max_new_tokens, for then its end was not waited for."""
        most = self.bench.max_new_tokens
        written = [(len(ids), self.chat.text(ids)) for ids in Pass(self.llm, groups).write(most)]
        return [Cut(text) if length >= most else text for length, text in written]

    def _choose(self, groups: Sequence[Group], asked: Sequence[Prompt]) -> list[str]:
        """The likeliest of each question's options: the sum of the log-probabilities of its tokens."""
        if all(len(ids) == 1 for prompt in asked for ids in prompt.options):  # what comes behind the prompt says it all
            prompts = Pass(self.llm, groups)
            logits_NV = self.llm.head(prompts.behind(prompts.read())).float()
            scores = [logits_NV[n, [ids[0] for ids in prompt.options]].tolist() for n, prompt in enumerate(asked)]
        else:
            likely = likelihoods(self.llm, groups, [prompt.options for prompt in asked])
            scores = [[logp for logp, _ in own] for own in likely]
        best = (max(range(len(own)), key=own.__getitem__) for own in scores)  # the first of equals
        return [prompt.question.options[n] for prompt, n in zip(asked, best, strict=True)]


class Asking(Benchmark):
    """Questions that somebody has, each about an image of its own, all about one, or about none."""

    def __init__(self, texts: Sequence[str], images: Any, max_new_tokens: int) -> None:
        self.texts, self.images = texts, images
        self.max_new_tokens = max_new_tokens  # type: ignore[misc]

    def questions(self) -> list[Question]:
        if self.images is None:
            return [Question(str(n), text) for n, text in enumerate(self.texts)]
        several = isinstance(self.images, list)
        return [Question(str(n), text, n if several else 0) for n, text in enumerate(self.texts)]

    def image(self, reference: Any) -> Any:
        return self.images[reference] if isinstance(self.images, list) else self.images


def _key(image: Any) -> Any:
    """An image's reference as a key; what cannot be one stands for itself."""
    try:
        hash(image)
    except TypeError:
        return id(image)
    return image


def _batched(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
