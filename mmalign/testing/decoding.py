"""The contract of a decoder, as a check: questions behind one prefix are read as each is alone.

Letters: B rows, S positions, T new positions, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign.llms import LLM
from mmalign.llms.decoding import PADDING, PREFIX, Line
from mmalign.testing.tensors import APART, same


def token_ids(llm: LLM, rows: int, length: int) -> Tensor:
    """Token ids, drawn anew each time."""
    return torch.randint(0, llm.vocab, (rows, length))


def read_alone(llm: LLM, embeds_SD: Tensor) -> Tensor:
    hidden_BSD: Tensor = llm(embeds_SD[None], torch.ones(1, len(embeds_SD), dtype=torch.long))
    return hidden_BSD[0]


@dataclass
class Asked:
    """A row as a decoder reads it: a prefix, and questions behind it that share it. Lists of embeddings."""

    prefix_SD: Tensor
    rests: list[Tensor]

    def piece(self, parts: Sequence[tuple[int, int, int | None]]) -> tuple[Tensor, list[int], list[int]]:
        """embeds_TD, whose they are and where they would stand alone; parts: (question, from, to) one by one."""
        embeds, owners, positions = [self.prefix_SD[:0]], [], []
        for number, start, stop in parts:
            own_SD = self.rests[number - 1] if number else self.prefix_SD
            first = len(self.prefix_SD) if number else 0
            places = range(len(own_SD))[start:stop]
            embeds.append(own_SD[start:stop])
            owners += [number if number else PREFIX] * len(places)
            positions += [first + place for place in places]
        return torch.cat(embeds), owners, positions


@torch.no_grad()
def decodes(llm: LLM) -> None:
    """Rows of three questions and of one; read at once, and in three pieces, as answers are."""
    parts_SD = [llm.embed(ids_S) for ids_S in torch.split(token_ids(llm, 1, 20)[0], [4, 3, 2, 4, 2, 5])]
    rows = [Asked(parts_SD[0], parts_SD[1:4]), Asked(parts_SD[4], parts_SD[5:])]
    numbers = [range(1, 1 + len(row.rests)) for row in rows]
    whole = [[(0, 0, None), *((n, 0, None) for n in own)] for own in numbers]
    but_last = [[(n, 0, -1) for n in own] for own in numbers]
    last = [[(n, -1, None) for n in own] for own in numbers]
    at_once = _decoded(llm, rows, [whole])
    in_pieces = _decoded(llm, rows, [[[(0, 0, None)]] * len(rows), but_last, last])
    for row, asked in enumerate(rows):
        for number, rest_SD in enumerate(asked.rests, 1):
            alone_SD = read_alone(llm, torch.cat([asked.prefix_SD, rest_SD]))
            for how, found in (("at once", at_once), ("in pieces", in_pieces)):
                own = [found[row, number if at >= len(asked.prefix_SD) else 0, at] for at in range(len(alone_SD))]
                what = f"decoder(): questions behind one prefix, read {how}, are not read as each is alone"
                same(torch.stack(own), alone_SD, APART[torch.float32], what)


def _decoded(
    llm: LLM, rows: Sequence[Asked], reads: Sequence[Sequence[Sequence[tuple[int, int, int | None]]]]
) -> dict[tuple[int, int, int], Tensor]:
    """{(row, question, position): hidden_D} of a fresh decoder; reads: of every row, what is read in one go."""
    decoder, found = llm.decoder(), {}
    for parts in reads:
        pieces = [row.piece(own) for row, own in zip(rows, parts, strict=True)]
        longest = max(len(owners) for _, owners, _ in pieces)
        embeds_BTD = torch.zeros(len(rows), longest, llm.dim)
        question_BT, position_BT = torch.full((2, len(rows), longest), PADDING)
        position_BT.clamp_(min=0)
        for row, (embeds_TD, owners, positions) in enumerate(pieces):
            embeds_BTD[row, : len(owners)] = embeds_TD
            question_BT[row, : len(owners)] = torch.tensor(owners)
            position_BT[row, : len(owners)] = torch.tensor(positions)
        hidden_BTD = decoder.read(embeds_BTD, Line(question_BT.clone(), position_BT.clone()))
        assert hidden_BTD.shape == embeds_BTD.shape, (
            f"decoder().read() gives {tuple(hidden_BTD.shape)} for new positions {tuple(embeds_BTD.shape)}"
        )
        for row, (_, owners, positions) in enumerate(pieces):
            for at, (number, position) in enumerate(zip(owners, positions, strict=True)):
                found[row, number, position] = hidden_BTD[row, at]
    return found
