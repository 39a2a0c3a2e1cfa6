"""Asks a trained model: answers to questions, and what a probe wants to know about its visual tokens.

Letters: B images, R rows, S positions, Q = P visual tokens of an image, D width of the language model, V its
vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.adapters import Adapter
from mmalign.benchmarks import Benchmark, Question, Subject
from mmalign.data import MARK, Turn
from mmalign.errors import CheckError
from mmalign.llms import LLM
from mmalign.packed import Group, Pass
from mmalign.vision import Vision

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class Prompt:
    """A question as the language model reads it."""

    question: Question
    ids: list[int]


class Asked(Subject):
    """A model in eval mode, or a language model alone. untrained: builds the language model as it was before."""

    def __init__(
        self,
        vision: Vision | None,
        adapter: Adapter | None,
        llm: LLM,
        device: torch.device,
        untrained: Callable[[], LLM] | None = None,
    ) -> None:
        self.llm = llm.to(device).eval()
        if vision is not None and adapter is not None:
            self.vision, self.adapter, self.grid = vision.to(device).eval(), adapter.to(device).eval(), adapter.grid
        self.device, self.untrained = device, untrained
        self.lm: Any = getattr(llm, "lm", None)
        if self.lm is None:
            raise CheckError(f"{type(llm).__name__} cannot be asked", fix="a causal language model of transformers")

    # Questions

    @torch.no_grad()
    def answers(self, bench: Benchmark, questions: Sequence[Question], batch: int) -> Iterator[tuple[Question, str]]:
        """(question, answer), pass by pass. Greedy, or the likeliest option; questions about one image share its
        prefix, and every distinct (image, text) is answered once."""
        alike: dict[tuple[Any, str, tuple[str, ...]], list[Question]] = {}
        for question in questions:
            alike.setdefault((_key(question.image), question.text, question.options), []).append(question)
        asked = [same[0] for same in alike.values()]
        for part in self._passes(asked, batch):
            for question, text in self._answered(bench, part):
                same = alike[_key(question.image), question.text, question.options]
                yield from ((one, text) for one in same)

    def _passes(self, questions: Sequence[Question], batch: int) -> Iterator[list[list[Prompt]]]:
        """Lists of groups, each the questions about one image; groups of similar length together."""
        by_image: dict[Any, list[Prompt]] = {}
        for question in questions:
            key = question.id if question.image is None else (_key(question.image), bool(question.options))
            by_image.setdefault(key, []).append(Prompt(question, []))
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

    def _answered(self, bench: Benchmark, groups: list[list[Prompt]]) -> Iterator[tuple[Question, str]]:
        made: list[Group] = []
        for prompts in groups:
            visual_QD = self._visual_of(bench, prompts[0].question)
            for prompt in prompts:
                prompt.ids = self._ids(prompt.question, 0 if visual_QD is None else len(visual_QD))
            made += Group.of([prompt.ids for prompt in prompts], visual_QD, self.llm.chat.mark)
        questions = [prompt.question for prompts in groups for prompt in prompts]
        write = self._choose if questions[0].options else self._write
        return zip(questions, write(bench, made, questions), strict=True)

    def _visual_of(self, bench: Benchmark, question: Question) -> Tensor | None:
        if question.image is None:
            return None
        visual_QD: Tensor = self._adapt(self.vision.pixels(bench.image(question.image)).to(self.device)[None])[0]
        return visual_QD

    def _ids(self, question: Question, tokens: int) -> list[int]:
        text = f"{MARK}\n{question.text}" if tokens else question.text
        return self.llm.chat.prompt([Turn("user", text)], [tokens] if tokens else [])

    def _adapt(self, pixels_B3SS: Tensor) -> Tensor:
        patches_BPC = self.vision(pixels_B3SS)
        weight = next(self.adapter.parameters(), next(self.llm.parameters()))
        visual_BQD: Tensor = self.adapter(patches_BPC.to(weight.dtype))
        return visual_BQD

    def _pass(self, groups: Sequence[Group]) -> Pass:
        return Pass(self.lm, groups, self.llm.chat.mark, self.llm.chat.pad)

    def _write(self, bench: Benchmark, groups: Sequence[Group], questions: Sequence[Question]) -> list[str]:
        """Greedy answers."""
        ids = self._pass(groups).write(self.llm.head, self.llm.chat.ends, bench.max_new_tokens)
        return [self.llm.chat.text(one) for one in ids]

    def _choose(self, bench: Benchmark, groups: Sequence[Group], questions: Sequence[Question]) -> list[str]:
        """The likeliest of each question's options: the sum of the log-probabilities of its tokens."""
        spelled = {option: self.llm.chat.answer(option) for q in questions for option in q.options}
        if all(len(ids) == 1 for ids in spelled.values()):  # what comes behind the prompt says it all
            made = self._pass(groups)
            logits_NV = self.llm.head(made.behind(made.read())).float()
            scores = [logits_NV[n, [spelled[o][0] for o in q.options]].tolist() for n, q in enumerate(questions)]
        else:
            scores = self._likelihoods(groups, [[spelled[o] for o in q.options] for q in questions])
        return [q.options[max(range(len(s)), key=s.__getitem__)] for q, s in zip(questions, scores, strict=True)]

    def _likelihoods(self, groups: Sequence[Group], options: Sequence[Sequence[list[int]]]) -> list[list[float]]:
        """Every option read behind its question, but for its last token."""
        rest = iter(options)
        many = [(group, [(own, o) for own in group.rests for o in next(rest)]) for group in groups]
        longer = [Group(g.prefix, [own + o[:-1] for own, o in pairs], g.visual_QD) for g, pairs in many]
        made = self._pass(longer)
        hidden_BSD = made.read()
        wanted = [o for _, pairs in many for _, o in pairs]
        found = torch.zeros(len(wanted), device=self.device)
        for back in range(max(map(len, wanted))):
            long = torch.tensor([n for n, o in enumerate(wanted) if len(o) > back], device=self.device)
            token = torch.tensor([wanted[n][-1 - back] for n in long.tolist()], device=self.device)
            logp = F.log_softmax(self.llm.head(made.behind(hidden_BSD, back)[long]).float(), dim=-1)
            found[long] += logp.gather(1, token[:, None])[:, 0]
        flat = iter(found.tolist())
        return [[next(flat) for _ in own] for own in options]

    # Probes

    @torch.no_grad()
    def visual(self, images: Sequence["Image"]) -> Tensor:
        pixels_B3SS = torch.stack([self.vision.pixels(image) for image in images]).to(self.device)
        return self._adapt(pixels_B3SS).float().cpu()

    def vocabulary(self) -> tuple[Tensor, list[str]]:
        embed_VD = self.llm.vocabulary().detach().float().cpu()
        return embed_VD, list(self.llm.chat.tokenizer.convert_ids_to_tokens(list(range(len(embed_VD)))))

    def pieces(self, words: Sequence[str]) -> list[list[int]]:
        return self.llm.chat.pieces(words)

    @torch.no_grad()
    def perplexity(self, texts: Sequence[str], before: bool = False) -> float:
        llm = self.untrained().to(self.device).eval() if before and self.untrained else self.llm
        total = tokens = 0.0
        for part in _batched(list(texts), 32):
            rows = [self.llm.chat.plain(text) for text in part]
            wide = max(map(len, rows))
            ids_RS = torch.tensor([row + [self.llm.chat.pad] * (wide - len(row)) for row in rows], device=self.device)
            mask_RS = torch.tensor([[1] * len(row) + [0] * (wide - len(row)) for row in rows], device=self.device)
            hidden_RSD = llm(llm.embed(ids_RS), mask_RS)
            real_RS = mask_RS[:, 1:] > 0
            logits_NV = llm.head(hidden_RSD[:, :-1][real_RS]).float()
            total += float(F.cross_entropy(logits_NV, ids_RS[:, 1:][real_RS], reduction="sum"))
            tokens += int(real_RS.sum())
        return float(torch.tensor(total / max(1.0, tokens)).exp())


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
