"""Files feed training like any other data: the same pixels, the same trained tokens, bad rows counted and listed."""

import pytest
import torch

from mmalign import cards
from mmalign.cards import Registry
from mmalign.data import MARK
from mmalign.data.conversations import Conversations
from mmalign.data.mixture import Mixture
from mmalign.errors import StageError
from mmalign.llms.chat import Chat
from mmalign.toyworld.data import Captions
from mmalign.training.batches import Bad, Collate
from tests.data.made import jsonl, row


@pytest.fixture(scope="module")
def parts():
    known = Registry()
    return Chat(known.card("llms", "toy-llama").args["checkpoint"]), cards.build(known.card("vision", "toy-clip"))


@pytest.fixture
def written(tmp_path):
    """Toy captions as LLaVA's JSONL and PNGs, and two rows that cannot be used."""
    toy, rows = Captions(6), []
    for number, record in enumerate(toy):
        toy.image(record.images[0]).save(tmp_path / f"{number}.png")
        rows.append(row(record.id, f"{number}.png", record.turns[0].text, record.turns[1].text))
    return jsonl(tmp_path / "x.jsonl", [*rows, row("gone", "none.png"), "{"])


def batch(data, parts, numbers, bad=0):
    chat, vision = parts
    return Collate(data, chat, vision, vision.patches, 500, Bad(bad)).batch(numbers, seed=0)


def trained(found):
    return [row_S[weight_S > 0].tolist() for row_S, weight_S in zip(found.ids_RS, found.weight_RS)]


def test_the_same_as_the_toy_world(written, parts):
    toy, files = batch(Captions(6), parts, range(6)), batch(Conversations(written), parts, range(6))
    assert torch.equal(toy.pixels_B3SS, files.pixels_B3SS)
    assert trained(toy) == trained(files)
    assert files.ids == [f"{id_}@{n}" for n, id_ in enumerate(toy.ids)]
    mixed = batch(Mixture([Captions(6), {"kind": "conversations", "path": written}]), parts, [3, 9])
    assert torch.equal(mixed.pixels_B3SS[0], mixed.pixels_B3SS[1])
    assert (files.ids_RS == parts[0].mark).sum() == 6 * parts[1].patches
    assert MARK in Conversations(written)[0].turns[0].text


def test_bad_rows_are_counted(written, parts):
    chat, vision = parts
    bad = Bad(2)
    found = Collate(Conversations(written), chat, vision, vision.patches, 500, bad).batch(range(8), seed=0)
    assert len(found.ids) == 6
    assert bad.found["gone@6"] == "missing: no image none.png"
    assert "json: row 7 is not valid JSON" in str(bad.found)
    with pytest.raises(StageError, match="2 unusable samples"):
        batch(Conversations(written), parts, range(8), bad=1)
