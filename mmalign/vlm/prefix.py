"""Many questions in one pass: a prefix (system, image) is read once and shared by all the questions that begin with it.

Letters: B groups, S positions, T new positions, N questions, D width of the language model, V its vocabulary.

A group's positions are [prefix][rest of question 1][rest of question 2] ...; each question sees the prefix and itself,
at the positions it would have alone. Answers are decoded the same way, one token a question and pass, on one cache
that holds the prefix once. In exact arithmetic this is batch-1 decoding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign.llms import LLM
from mmalign.llms.decoding import PADDING, PREFIX, Line


@dataclass
class Group:
    """Questions that share a prefix. visual_QD: the visual tokens of the marks in it, None without an image."""

    prefix: list[int]
    rests: list[list[int]]  # what each question adds; at least one token
    visual_QD: Tensor | None = None

    @classmethod
    def of(cls, prompts: Sequence[list[int]], visual_QD: Tensor | None, mark: int) -> "list[Group]":
        """One group where all marks stand in the common prefix, else one a prompt."""
        shortest = min(map(len, prompts)) - 1
        common = next((n for n in range(shortest) if len({p[n] for p in prompts}) > 1), shortest)
        if len(prompts) > 1 and any(mark in p[common:] for p in prompts):
            return [group for p in prompts for group in cls.of([p], visual_QD, mark)]
        return [cls(list(prompts[0][:common]), [list(p[common:]) for p in prompts], visual_QD)]

    @property
    def length(self) -> int:
        return len(self.prefix) + sum(map(len, self.rests))


class Pass:
    """A batch of groups being answered by a language model."""

    def __init__(self, llm: LLM, groups: Sequence[Group]) -> None:
        self.llm, self.groups = llm, list(groups)
        self.pad, mark = llm.chat.pad, llm.chat.mark
        self.device = next(llm.parameters()).device
        self.decoder = llm.decoder()
        ids_BS, self.line = self._layout()
        self.last = self._ends()  # (group, position) of every question's last token
        embeds_BSD = llm.embed(ids_BS.masked_fill(ids_BS == mark, 0))
        if seen := [g.visual_QD for g in self.groups if g.visual_QD is not None]:
            embeds_BSD[ids_BS == mark] = torch.cat(seen).to(embeds_BSD.dtype)
        self.embeds_BSD = embeds_BSD

    def _layout(self) -> tuple[Tensor, Line]:
        wide = max(group.length for group in self.groups)
        shape = (len(self.groups), wide)
        ids, question = torch.full(shape, self.pad), torch.full(shape, PADDING)
        position = torch.zeros(shape, dtype=torch.long)
        for row, group in enumerate(self.groups):
            flat = group.prefix + [i for rest in group.rests for i in rest]
            ids[row, : len(flat)] = torch.tensor(flat)
            owners = [PREFIX] * len(group.prefix) + [n for n, rest in enumerate(group.rests, 1) for _ in rest]
            question[row, : len(flat)] = torch.tensor(owners)
            places = list(range(len(group.prefix)))
            places += [len(group.prefix) + k for rest in group.rests for k in range(len(rest))]
            position[row, : len(flat)] = torch.tensor(places)
        return ids.to(self.device), Line(question.to(self.device), position.to(self.device))

    def _ends(self) -> list[tuple[int, int]]:
        last = []
        for row, group in enumerate(self.groups):
            at = len(group.prefix)
            for rest in group.rests:
                at += len(rest)
                last.append((row, at - 1))
        return last

    def read(self) -> Tensor:
        """hidden_BSD of all prompts; the decoder holds them afterwards."""
        return self.decoder.read(self.embeds_BSD, self.line)

    def behind(self, hidden_BSD: Tensor, back: int = 0) -> Tensor:
        """hidden_ND at every question's last token, or `back` tokens before it."""
        rows, columns = (torch.tensor(index, device=self.device) for index in zip(*self.last, strict=True))
        return hidden_BSD[rows, columns - back]

    def write(self, max_new_tokens: int) -> list[list[int]]:
        """Greedy answers of all questions, in order, without the end token."""
        head, ends = self.llm.head, self.llm.chat.ends
        next_N = head(self.behind(self.read())).argmax(-1)
        answers: list[list[int]] = [[] for _ in self.last]
        open_ = _taken(answers, list(range(len(answers))), next_N.tolist(), ends)
        while open_ and len(answers[open_[0]]) < max_new_tokens:
            line, ids_BT, slots = self._next(answers, open_)
            hidden_BTD = self.decoder.read(self.llm.embed(ids_BT), line)
            picked = torch.tensor(slots, device=self.device)
            next_N = head(hidden_BTD[picked[:, 0], picked[:, 1]]).argmax(-1)
            open_ = _taken(answers, open_, next_N.tolist(), ends)
        return answers

    def _next(self, answers: list[list[int]], open_: list[int]) -> tuple[Line, Tensor, list[tuple[int, int]]]:
        """One new position for every question that is still being answered."""
        by_group: list[list[int]] = [[] for _ in self.groups]
        for n in open_:
            by_group[self.last[n][0]].append(n)
        shape = (len(self.groups), max(map(len, by_group)))
        ids, question = torch.full(shape, self.pad), torch.full(shape, PADDING)
        position = torch.zeros(shape, dtype=torch.long)
        slots = {}
        for row, own in enumerate(by_group):
            for column, n in enumerate(own):
                ids[row, column] = answers[n][-1]
                number = n - self._first(row) + 1
                question[row, column] = number
                group = self.groups[row]
                position[row, column] = len(group.prefix) + len(group.rests[number - 1]) + len(answers[n]) - 1
                slots[n] = (row, column)
        line = Line(question.to(self.device), position.to(self.device))
        return line, ids.to(self.device), [slots[n] for n in open_]

    def _first(self, row: int) -> int:
        """The number, over all groups, of a group's first question."""
        return sum(len(group.rests) for group in self.groups[:row])


def _taken(answers: list[list[int]], open_: list[int], new: list[int], ends: set[int]) -> list[int]:
    """Add a token to every open answer; those that did not end stay open."""
    still = []
    for n, token in zip(open_, new, strict=True):
        if token not in ends:
            answers[n].append(token)
            still.append(n)
    return still
