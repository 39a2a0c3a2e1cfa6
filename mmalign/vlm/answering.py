"""Asks a trained model: answers to questions, and what a probe wants to know about its visual tokens.

Letters: B images, R rows, S positions, Q = P visual tokens of an image, D width of the language model, V its
vocabulary.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.adapters import Adapter
from mmalign.benchmarks import Benchmark, Question, Subject
from mmalign.data import MARK, Turn
from mmalign.errors import CheckError
from mmalign.llms import LLM, Look, Places
from mmalign.vision import Vision
from mmalign.vlm.prefix import Group, Pass

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class Prompt:
    """A question as the language model reads it."""

    question: Question
    ids: list[int] = field(default_factory=list)
    options: list[list[int]] = field(default_factory=list)  # the ids of each option behind it


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
        self.device, self.untrained, self.began = device, untrained, untrained is not None
        self._answers: dict[str, list[int]] = {}  # an option: its token ids behind a chat prompt
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

    def _answered(self, bench: Benchmark, groups: list[list[Prompt]]) -> Iterator[tuple[Question, str]]:
        made: list[Group] = []
        for prompts in groups:
            visual_QD = self._visual_of(bench, prompts[0].question)
            for prompt in prompts:
                self._spell(bench, prompt, 0 if visual_QD is None else len(visual_QD))
            made += Group.of([prompt.ids for prompt in prompts], visual_QD, self.llm.chat.mark)
        asked = [prompt for prompts in groups for prompt in prompts]
        write = self._choose if asked[0].options else self._write
        return zip((prompt.question for prompt in asked), write(bench, made, asked), strict=True)

    def _visual_of(self, bench: Benchmark, question: Question) -> Tensor | None:
        if question.image is None:
            return None
        visual_QD: Tensor = self._adapt(self.vision.pixels(bench.image(question.image)).to(self.device)[None])[0]
        return visual_QD

    def _spell(self, bench: Benchmark, prompt: Prompt, tokens: int) -> None:
        """The prompt as token ids; `tokens`: how many its image becomes."""
        question = prompt.question
        if question.plain:
            prompt.ids, prompt.options = self._plain(bench, question)
        else:
            prompt.ids, prompt.options = self._ids(question, tokens), [self._answer(o) for o in question.options]

    def _plain(self, bench: Benchmark, question: Question) -> tuple[list[int], list[list[int]]]:
        """A text without the chat template, shortened to the model's context, if need be by cutting off its beginning.

        Letters are spelled as lm-evaluation-harness does: what they add to the tokens of the prompt.
        """
        ids = self.llm.chat.plain(question.text)
        options = [self.llm.chat.behind(question.text, option) for option in question.options]
        room = self.context + 1 - max(map(len, options), default=bench.max_new_tokens)
        if len(ids) > room and (shorter := bench.shorter(question)):
            return self._plain(bench, shorter)
        return ids[-room:], options

    @property
    def context(self) -> int:
        """Tokens the language model can read."""
        return int(getattr(self.lm.config, "max_position_embeddings", sys.maxsize))

    def _answer(self, option: str) -> list[int]:
        if option not in self._answers:
            self._answers[option] = self.llm.chat.answer(option)
        return self._answers[option]

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

    def _write(self, bench: Benchmark, groups: Sequence[Group], asked: Sequence[Prompt]) -> list[str]:
        """Greedy answers."""
        ids = self._pass(groups).write(self.llm.head, self.llm.chat.ends, bench.max_new_tokens)
        return [self.llm.chat.text(one) for one in ids]

    def _choose(self, bench: Benchmark, groups: Sequence[Group], asked: Sequence[Prompt]) -> list[str]:
        """The likeliest of each question's options: the sum of the log-probabilities of its tokens."""
        if all(len(ids) == 1 for prompt in asked for ids in prompt.options):  # what comes behind the prompt says it all
            made = self._pass(groups)
            logits_NV = self.llm.head(made.behind(made.read())).float()
            scores = [logits_NV[n, [ids[0] for ids in prompt.options]].tolist() for n, prompt in enumerate(asked)]
        else:
            scores = self._likelihoods(groups, [prompt.options for prompt in asked])
        best = (max(range(len(own)), key=own.__getitem__) for own in scores)  # the first of equals
        return [prompt.question.options[n] for prompt, n in zip(asked, best, strict=True)]

    def _likelihoods(self, groups: Sequence[Group], options: Sequence[Sequence[list[int]]]) -> list[list[float]]:
        """Every option read behind its question, but for its last token; what options have in common is read once."""
        rest, longer, read = iter(options), list[Group](), 0
        wanted: list[tuple[int, list[int]]] = []  # of every option, which text it is read behind, and its token ids
        for group in groups:
            texts: dict[tuple[int, ...], int] = {}
            for number, own in enumerate(group.rests):
                for option in next(rest):
                    place = texts.setdefault((number, *own, *option[:-1]), len(texts))
                    wanted.append((read + place, option))
            longer.append(Group(group.prefix, [list(ids) for _, *ids in texts], group.visual_QD))
            read += len(texts)
        made = self._pass(longer)
        hidden_BSD = made.read()
        found = torch.zeros(len(wanted), device=self.device)
        for back in range(max(len(option) for _, option in wanted)):
            logp_NV = F.log_softmax(self.llm.head(made.behind(hidden_BSD, back)).float(), dim=-1)
            long = [(n, row, option[-1 - back]) for n, (row, option) in enumerate(wanted) if len(option) > back]
            at, row, token = torch.tensor(long, device=self.device).T
            found[at] += logp_NV[row, token]
        flat = iter(found.tolist())
        return [[next(flat) for _ in own] for own in options]

    # Probes

    @torch.no_grad()
    def visual(self, images: Sequence["Image"]) -> Tensor:
        pixels_B3SS = torch.stack([self.vision.pixels(image) for image in images]).to(self.device)
        return self._adapt(pixels_B3SS).float().cpu()

    @torch.no_grad()
    def layers(self, images: Sequence["Image"]) -> list[Tensor]:
        """After the last layer comes the final norm, as in transformers' hidden_states."""
        if not isinstance(getattr(self.lm.base_model, "layers", None), torch.nn.ModuleList):
            return []
        visual_BPD = self.visual(images).to(self.device, self.lm.dtype)
        many, tokens = visual_BPD.shape[:2]
        ids = self.llm.chat.prompt([Turn("user", f"{MARK}\n")], [tokens])
        ids = ids[: ids.index(self.llm.chat.mark) + tokens]  # what comes behind an image cannot change it
        ids_RS = torch.tensor(ids, device=self.device).expand(many, -1)
        at_RS = ids_RS == self.llm.chat.mark
        places = Places(torch.arange(many, device=self.device), torch.where(at_RS)[1].view(many, tokens), ~at_RS)
        embeds_RSD = self.llm.embed(ids_RS.masked_fill(at_RS, 0))
        embeds_RSD[at_RS] = visual_BPD.flatten(0, 1)
        every = Look((1.0,) * self.llm.depth, attention=False)
        with self.llm.watched([every], places) as seen:
            seen.kept = []
            self.llm(embeds_RSD, torch.ones_like(ids_RS))
        return [kept.float().cpu() for kept in seen.kept]

    def vocabulary(self) -> tuple[Tensor, list[str]]:
        embed_VD = self.llm.vocabulary().detach().float().cpu()
        return embed_VD, list(self.llm.chat.tokenizer.convert_ids_to_tokens(list(range(len(embed_VD)))))

    def pieces(self, words: Sequence[str]) -> list[list[int]]:
        return self.llm.chat.pieces(words)

    @torch.no_grad()
    def perplexity(self, texts: Sequence[str], before: bool = False) -> float:
        llm = self.llm
        if before:
            assert self.untrained, "nobody said what the language model was before"
            llm = self.untrained().to(self.device).eval()
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
