"""Many questions in one pass: a prefix (system, image) is read once and shared by all the questions that begin with it.

Letters: B groups, S positions, T new positions, N questions, D width of the language model, V its vocabulary.

A group's positions are [prefix][rest of question 1][rest of question 2] ...; each question sees the prefix and itself,
at the positions it would have alone. Answers are decoded the same way, one token a question and pass, on one cache
that holds the prefix once. In exact arithmetic this is batch-1 decoding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

PREFIX, PADDING = 0, -1  # in place of a question's number, which counts from 1


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


@dataclass
class Line:
    """Positions of every group, padded behind: whose question they are, and where they would stand alone."""

    question_BS: Tensor
    position_BS: Tensor

    @property
    def real_BS(self) -> Tensor:
        return self.question_BS != PADDING

    def then(self, other: "Line") -> "Line":
        pairs = ((self.question_BS, other.question_BS), (self.position_BS, other.position_BS))
        return Line(*(torch.cat(pair, 1) for pair in pairs))

    def sees(self, keys: "Line", window: int | None = None) -> Tensor:
        """mask_B1TS: which of `keys` each of these positions attends to; `window`: only so many positions back."""
        own, key = self.question_BS[:, :, None], keys.question_BS[:, None, :]
        back = self.position_BS[:, :, None] - keys.position_BS[:, None, :]
        mask = (back >= 0) & ((key == PREFIX) | (key == own)) & keys.real_BS[:, None, :]
        if window is not None:
            mask &= back < window
        mask[:, :, 0] |= ~self.real_BS  # padding must see something, or its values are no numbers
        return mask[:, None]


class Pass:
    """A batch of groups being answered by a causal LM of transformers. embed: token ids -> embeddings."""

    def __init__(self, lm: Any, groups: Sequence[Group], mark: int, pad: int) -> None:
        self.lm, self.groups, self.pad = lm, list(groups), pad
        self.device = next(lm.parameters()).device
        self.cache = DynamicCache()
        ids_BS, self.line = self._layout()
        self.last = self._ends()  # (group, position) of every question's last token
        embeds_BSD = lm.get_input_embeddings()(ids_BS.masked_fill(ids_BS == mark, 0))
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
        found = []
        for row, group in enumerate(self.groups):
            at = len(group.prefix)
            for rest in group.rests:
                at += len(rest)
                found.append((row, at - 1))
        return found

    def read(self) -> Tensor:
        """hidden_BSD of all prompts; the cache holds them afterwards."""
        return self._forward(self.embeds_BSD, self.line, self.line)

    def behind(self, hidden_BSD: Tensor, back: int = 0) -> Tensor:
        """hidden_ND at every question's last token, or `back` tokens before it."""
        rows, columns = (torch.tensor(index, device=self.device) for index in zip(*self.last, strict=True))
        return hidden_BSD[rows, columns - back]

    def _forward(self, embeds_BTD: Tensor, line: Line, keys: Line) -> Tensor:
        out = self.lm.base_model(
            inputs_embeds=embeds_BTD,
            attention_mask=masks(self.lm.config, line, keys),
            position_ids=line.position_BS,
            past_key_values=self.cache,
            use_cache=True,
        )
        hidden_BTD: Tensor = out.last_hidden_state
        return hidden_BTD

    def write(self, head: Any, ends: set[int], most: int) -> list[list[int]]:
        """Greedy answers of all questions, in order, without the end token. head: hidden states -> logits."""
        next_N = head(self.behind(self.read())).argmax(-1)
        answers: list[list[int]] = [[] for _ in self.last]
        open_ = _taken(answers, list(range(len(answers))), next_N.tolist(), ends)
        keys, embed = self.line, self.lm.get_input_embeddings()
        while open_ and len(answers[open_[0]]) < most:
            line, ids_BT, slots = self._next(answers, open_)
            keys = keys.then(line)
            hidden_BTD = self._forward(embed(ids_BT), line, keys)
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


def masks(config: Any, line: Line, keys: Line) -> Any:
    """The mask as the model takes it: one, or one for each kind of layer where some see only a window."""
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    eager = config._attn_implementation == "eager"  # it adds its mask

    def mask(window: int | None) -> Tensor:
        seen = line.sees(keys, window)
        return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -1e30) if eager else seen

    if "sliding_attention" in kinds:
        return {"full_attention": mask(None), "sliding_attention": mask(window)}
    return mask(None if kinds else window)
