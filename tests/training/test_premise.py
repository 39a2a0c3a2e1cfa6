"""BASIC's premise: shares by layer against transformers' hidden states, and the warning when it fails."""

import json

import pytest
import torch
from torch.nn.functional import normalize

from mmalign.errors import DataError
from mmalign.objectives.basic import Direction
from mmalign.stages import train
from mmalign.training import premise as premises
from mmalign.training.premise import Premise
from mmalign.vlm.control import lists
from mmalign.vlm.vocabulary import word_tokens
from tests.objectives.test_basic import batch_of, build, eager, folders  # noqa: F401
from tests.stages.test_train_labels import ONLINE, collated, labelled


def made(model, tmp_path, right=None):
    batch = batch_of(model, [0, 2])
    chat = model.vlm.llm.chat
    tokens = chat.tokenizer.convert_ids_to_tokens(range(len(chat.tokenizer)))
    words = [chat.is_word(token) for token in tokens]
    assert 0 < sum(words) < len(words)
    return batch, words, Premise(model, batch, right, tmp_path / "premise.jsonl", every=2, steps=5)


def test_shares_by_layer(folders, tmp_path):  # noqa: F811
    model = build(folders, "llama", a=Direction(3))
    right = [[{n % model.vlm.llm.vocab, 5} if n % 2 else set() for n in range(25)] for _ in range(3)]
    batch, words, premise = made(model, tmp_path, right)
    found = premise.look()
    hidden, _ = eager(model, batch, 3)
    at = torch.where(batch.ids_RS == model.vlm.llm.chat.mark)
    with torch.no_grad():
        stages = [model.see(batch)[0].flatten(0, 1), *(h[at] for h in hidden)]
        weights = model.looks[0].weights
        stages.append(sum(w * h for w, h in zip(weights, stages[1:], strict=True)))
        embed = normalize(model.vlm.llm.vocabulary(), dim=-1)
    chat = model.vlm.llm.chat
    used = [n for n in range(min(len(embed), len(chat.tokenizer))) if n != chat.mark]  # rows that a token has
    for name, tokens in zip(["layer 0", "layer 1", "layer 2", "layer 3", "refined"], stages, strict=True):
        nearest = [max(used, key=(embed @ normalize(t, dim=-1)).tolist().__getitem__) for t in tokens]
        assert found["words"][name] == pytest.approx(sum(bool(words[n]) for n in nearest) / len(nearest))
        flat = [r for rows in right for r in rows]
        hits = [n in r for n, r in zip(nearest, flat, strict=True) if r]
        assert found["right"][name] == pytest.approx(sum(hits) / len(hits))


def test_a_line_now_and_then(folders, tmp_path):  # noqa: F811
    model = build(folders, "llama", a=Direction())
    _, _, premise = made(model, tmp_path)
    assert [premise(done) for done in range(1, 6)] == [False] * 5
    lines = [json.loads(line) for line in premise.place.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5]  # the last step too


def test_what_the_looks_cost_is_told(folders, tmp_path, monkeypatch):  # noqa: F811
    """Three looks of 2 s each among five steps of 10 s."""
    clock = [100.0]
    monkeypatch.setattr(premises.time, "monotonic", lambda: clock[0])
    _, _, premise = made(build(folders, "llama", a=Direction()), tmp_path)
    look = premise.look

    def slow():
        clock[0] += 2
        return look()

    monkeypatch.setattr(premise, "look", slow)
    for done in range(1, 6):
        clock[0] += 10
        premise(done)
    assert premise.cost() == "looks at BASIC's premise: 3, 6.0 s, 10.7% of the training (watch_every: 2)"


@pytest.mark.parametrize(
    ("before", "after", "says"), [(0.5, 0.2, True), (0.5, 0.505, True), (0.1, 0.4, False)]
)  # fmt: skip
def test_the_warning(folders, tmp_path, before, after, says):  # noqa: F811
    _, _, premise = made(build(folders, "llama", a=Direction()), tmp_path)
    assert premise.warning() is None
    premise.last = {"words": {"layer 0": before, "refined": after}}
    found = premise.warning()
    assert (found is not None) == says
    if says:
        assert f"{before:.1%} of visual tokens" in found
        assert f"{after:.1%} after its shallow layers" in found


def test_the_ceiling_by_a_loop(folders, tmp_path):  # noqa: F811
    """Words in place of the visual tokens, read at transformers' hidden states: nearest to the word they are?"""
    model = build(folders, "llama", a=Direction(3))
    batch, _, premise = made(model, tmp_path)
    found = premise.ceiling()
    llm = model.vlm.llm
    own = lists(word_tokens(llm), batch.images * model.vlm.tokens, seed=0)
    model.see = lambda batch: (llm.embed(own).view(batch.images, -1, llm.dim), None)
    hidden, _ = eager(model, batch, 3)
    at = torch.where(batch.ids_RS == llm.chat.mark)
    with torch.no_grad():
        stages = [llm.embed(own), *(h[at] for h in hidden)]
        stages.append(sum(w * h for w, h in zip(model.looks[0].weights, stages[1:], strict=True)))
        embed = normalize(llm.vocabulary(), dim=-1)
    used = [n for n in range(min(len(embed), len(llm.chat.tokenizer))) if n != llm.chat.mark]
    assert list(found) == ["layer 0", "layer 1", "layer 2", "layer 3", "refined"]
    for share, tokens in zip(found.values(), stages, strict=True):
        nearest = [max(used, key=(embed @ normalize(t, dim=-1)).tolist().__getitem__) for t in tokens]
        assert share == pytest.approx(sum(n == o for n, o in zip(nearest, own.tolist(), strict=True)) / len(own))
    assert found["layer 0"] == 1


@pytest.mark.parametrize(
    ("before", "after", "ceiling", "warns", "remarks"),
    [
        (0.5, 0.2, 0.9, True, False), (0.5, 0.2, 0.4, False, True), (1.0, 0.0, 0.0, False, True),
        (1.0, 0.8, 0.8, False, False), (1.0, 0.75, 0.8, True, False), (0.1, 0.3, 0.9, False, False),
    ],
)  # fmt: skip
def test_nothing_is_concluded_where_perfect_tokens_are_not_read(
    folders, tmp_path, before, after, ceiling, warns, remarks  # noqa: F811
):  # fmt: skip
    _, _, premise = made(build(folders, "llama", a=Direction()), tmp_path)
    assert premise.remark() is None
    premise.last = {"right": {"layer 0": before, "refined": after}, "ceiling": {"layer 0": 1.0, "refined": ceiling}}
    assert (premise.warning() is not None) == warns
    assert (premise.remark() is not None) == remarks
    if remarks:
        assert f"of perfect visual tokens, {ceiling:.1%} are nearest to the word they are" in premise.remark()


def test_the_ceiling_is_measured_at_the_first_look_and_the_last(folders, tmp_path, monkeypatch):  # noqa: F811
    _, _, premise = made(build(folders, "llama", a=Direction()), tmp_path)
    measured = []
    monkeypatch.setattr(premise, "ceiling", lambda: measured.append(1) or {"refined": len(measured) / 10})
    for done in range(1, 6):
        premise(done)
    lines = [json.loads(line)["ceiling"]["refined"] for line in premise.place.read_text().splitlines()]
    assert lines == [0.1, 0.1, 0.2]


def test_an_unusable_sample_is_not_looked_at(tmp_path, monkeypatch):
    """Nor is the truth about it: the others' would be taken for each other's."""
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    given = labelled(tmp_path, "stages.label=~", *ONLINE, "stages.align.objectives={lm: 1, basic-direction: 1}")
    model, collate = collated(given)
    plain, refused = collate.data.image, collate.data[1].images[0]

    def image(reference):
        if reference == refused:
            raise DataError("truncated")
        return plain(reference)

    monkeypatch.setattr(collate.data, "image", image)
    collate.bad.budget = 1
    premise = train._premise(given, given.stage, model, collate, steps=5)
    assert premise.batch.images == len(premise.right_BQ) == 47
    assert set(premise.look()) == {"words", "right"}
