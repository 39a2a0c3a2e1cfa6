"""Reading on: what is read later sees what was read before; questions behind one prefix share it.

Letters: B rows, S positions, T new positions, D width.
"""

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from mmalign.llms.attending import masked

if TYPE_CHECKING:
    from mmalign.llms import LLM

PREFIX, PADDING = 0, -1  # in place of a question's number, which counts from 1


@dataclass
class Line:
    """Positions of every row, padded behind: whose question they are, and where they would stand alone."""

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


class Decoder:
    """A language model that reads bit by bit. In exact arithmetic every question is read as it would be alone."""

    def read(self, embeds_BTD: Tensor, line: Line) -> Tensor:
        """hidden_BTD of new positions, each behind those of its row that it sees: the prefix and its own question."""
        raise NotImplementedError


class Rereading(Decoder):
    """Reads everything again at every step, each question in a row of its own: for a model that only has `forward`."""

    def __init__(self, llm: "LLM") -> None:
        self.llm = llm
        self.embeds_BSD: Tensor | None = None
        self.line: Line | None = None

    def read(self, embeds_BTD: Tensor, line: Line) -> Tensor:
        if self.embeds_BSD is None or self.line is None:
            self.embeds_BSD, self.line = embeds_BTD, line
        else:
            self.embeds_BSD, self.line = torch.cat([self.embeds_BSD, embeds_BTD], 1), self.line.then(line)
        rows = [(row, places) for row in range(len(embeds_BTD)) for places in self._questions(row)]
        longest = max(len(places) for _, places in rows)
        embeds_RSD = embeds_BTD.new_zeros(len(rows), longest, embeds_BTD.shape[-1])
        mask_RS = torch.zeros(len(rows), longest, dtype=torch.long, device=embeds_BTD.device)
        for n, (row, places) in enumerate(rows):
            embeds_RSD[n, : len(places)], mask_RS[n, : len(places)] = self.embeds_BSD[row, places], 1
        hidden_RSD = self.llm(embeds_RSD, mask_RS)
        hidden_BSD = torch.zeros_like(self.embeds_BSD)
        for n, (row, places) in enumerate(rows):
            hidden_BSD[row, places] = hidden_RSD[n, : len(places)].to(hidden_BSD.dtype)
        return hidden_BSD[:, -embeds_BTD.shape[1] :]

    def _questions(self, row: int) -> list[Tensor]:
        """Of every question of a row, where its positions stand, in the order in which they are read."""
        assert self.line is not None
        question_S, position_S = self.line.question_BS[row], self.line.position_BS[row]
        numbers = sorted({int(n) for n in question_S.tolist()} - {PREFIX, PADDING}) or [PREFIX]
        found = []
        for number in numbers:
            places = torch.where((question_S == PREFIX) | (question_S == number))[0]
            found.append(places[position_S[places].argsort(stable=True)])
        return found


class Cached(Decoder):
    """A causal LM of transformers, which keeps keys and values of all that it read."""

    def __init__(self, lm: Any) -> None:
        self.lm, cache = lm, DynamicCache()
        named = inspect.signature(type(lm.base_model).forward).parameters
        self.cache = {"cache" if "cache" in named else "past_key_values": cache}  # the older name goes with 5.40
        self.keys: Line | None = None

    def read(self, embeds_BTD: Tensor, line: Line) -> Tensor:
        self.keys = line if self.keys is None else self.keys.then(line)
        with masked(self.lm.config):
            out = self.lm.base_model(
                inputs_embeds=embeds_BTD,
                attention_mask=masks(self.lm.config, line, self.keys),
                position_ids=line.position_BS,
                use_cache=True,
                **self.cache,
            )
        hidden_BTD: Tensor = out.last_hidden_state
        return hidden_BTD


def masks(config: Any, line: Line, keys: Line) -> Any:
    """The mask as the model takes it: one, or one for each kind of layer where some see only a window."""
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    eager = str(config._attn_implementation).endswith("eager")  # it adds its mask

    def mask(window: int | None) -> Tensor:
        seen = line.sees(keys, window)
        return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -1e30) if eager else seen

    if "sliding_attention" in kinds:
        return {"full_attention": mask(None), "sliding_attention": mask(window)}
    return mask(None if kinds else window)
