"""Samples that share a row: each sees itself alone, and every loss and gradient is what it is without packing."""

import json

import pytest
import torch

from mmalign.errors import StageError
from mmalign.llms import Places
from mmalign.llms.causal import CausalLM, _restarting
from mmalign.objectives import Words
from mmalign.objectives.basic import Direction
from mmalign.objectives.lm import NextToken
from mmalign.objectives.sea import SEA
from mmalign.testing import small
from mmalign.training.batches import BadSamples, Collate
from mmalign.vlm.supervised import PassLabels
from tests import parts
from tests.conftest import command
from tests.vlm.test_model import Talks, build, folders  # noqa: F401

ROWS = [0, 1, 2, 3, 4, 1]


@pytest.mark.parametrize("family", list(small.LLMS))
@torch.no_grad()
def test_a_sample_in_a_row_is_what_it_is_alone(tmp_path, family):
    """Three samples, a single token among them, and padding behind the second row."""
    mouth = CausalLM(str(small.llm(family, tmp_path))).eval()
    for name, parameter in mouth.named_parameters():  # sharper than as initialised, so that a leak shows
        if parameter.dim() > 1 and "embed" not in name:
            parameter.mul_(4)
    samples = [[5, 9, 4, 8, 11, 7], [6], [7, 5, 12, 4] * 9, [3, 10, 9]]
    rows = [samples[0] + samples[1] + samples[2], samples[3] + samples[0]]
    wide = max(map(len, rows))
    ids_RS = torch.tensor([row + [0] * (wide - len(row)) for row in rows])
    numbers = [[1] * 6 + [2] + [3] * 36, [1] * 3 + [2] * 6]
    mask_RS = torch.tensor([row + [0] * (wide - len(row)) for row in numbers])
    together = mouth(mouth.embed(ids_RS), mask_RS)
    for row, number, ids in [(0, 1, 0), (0, 2, 1), (0, 3, 2), (1, 1, 3), (1, 2, 0)]:
        own = torch.tensor([samples[ids]])
        alone = mouth(mouth.embed(own), torch.ones_like(own))[0]
        assert torch.allclose(together[row][mask_RS[row] == number], alone, atol=2e-5)


def test_positions_begin_anew_with_every_sample():
    mask = torch.tensor([[1, 1, 1, 2, 3, 3, 0, 0], [0, 0, 1, 1, 1, 1, 1, 2]])
    assert _restarting(mask).tolist() == [[0, 1, 2, 0, 0, 1, 0, 0], [0, 0, 0, 1, 2, 3, 4, 0]]


def collate(model, pack, max_length=200):
    return Collate(
        Talks(), model.vlm.llm.chat, model.vlm.vision, model.vlm.adapter.tokens, max_length, BadSamples(0), pack=pack
    )


def losses(model, batch):
    """Every objective's loss, and the gradient of their sum; labels are drawn alike for every batch."""
    g = torch.Generator().manual_seed(0)
    batch.words_BPK = torch.randint(2, (batch.images, 25, 2), generator=g)
    batch.scores_BPK = torch.rand(batch.images, 25, 2, generator=g)
    model.zero_grad()
    terms, _ = model(batch)
    sum(terms.values()).backward()
    return terms, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", list(parts.FAMILIES))
def test_packed_losses_and_gradients_are_the_unpacked_ones(folders, family):  # noqa: F811
    model = build(folders, "clip", family, {"lm": NextToken(), "sea": SEA(), "direction": Direction(layers=2)})
    model._labels = (PassLabels(Words(["red", "blue"], torch.tensor([[4], [9]]), model.vlm.llm.embed)),)
    model.prepare()
    plain, packed = collate(model, False).batch(ROWS, 3), collate(model, True).batch(ROWS, 3)
    assert len(packed.ids_RS) < len(plain.ids_RS)
    assert packed.mask_RS.max() > 1
    assert (packed.units, packed.ids) == (plain.units, plain.ids)
    want, gradients = losses(model, plain)
    found, own = losses(model, packed)
    for name, value in want.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-5), name
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(own[name], gradient, atol=1e-6 + 1e-4 * float(gradient.abs().max())), name


def test_rows_are_filled_in_order_and_never_beyond_their_length(folders):  # noqa: F811
    model = build(folders)
    plain = collate(model, False).batch(ROWS, 3)
    lengths = plain.mask_RS.sum(1).tolist()
    limit = lengths[0] + lengths[1] + lengths[2]
    packed = collate(model, True, limit).batch(ROWS, 3)
    assert packed.mask_RS.shape[1] <= limit
    assert packed.mask_RS[0].tolist()[:limit] == [n for n in (1, 2, 3) for _ in range(lengths[n - 1])]
    flat = [packed.ids_RS[r, packed.mask_RS[r] == n] for r in range(len(packed.ids_RS)) for n in (1, 2, 3, 4)]
    flat = [ids for ids in flat if len(ids)]
    for row, ids in enumerate(flat):
        assert ids.tolist() == plain.ids_RS[row, : lengths[row]].tolist()
    firsts = (packed.mask_RS[:, 1:] != packed.mask_RS[:, :-1]).nonzero()
    assert all(packed.weight_RS[row, column + 1] == 0 for row, column in firsts.tolist())


@pytest.mark.parametrize("text_of", [1, 2])
def test_an_image_needs_text_of_its_own_sample_behind_it(text_of):
    """`I I` of sample 1, then a word, of sample 1 or of sample 2."""
    text = torch.tensor([[False, False, True]])
    places = Places(torch.tensor([0]), torch.tensor([[0, 1]]), text)
    mask = torch.tensor([[1, 1, text_of]])
    if text_of == 1:
        places.check_text_behind(mask, ["a"])
        return
    with pytest.raises(StageError, match="an image has no text behind it"):
        places.check_text_behind(mask, ["a"])


def test_a_stage_trains_the_same_packed(tiny):
    """The real stage, twice into folders of their own; packing is no part of the fingerprint."""
    only = [f"stages.{stage}=~" for stage in ("label", "align", "score", "report")]
    only += ["stages.tune.reads=~", "stages.tune.steps=2", "--runs"]
    logs = []
    for pack in ("false", "true"):
        said = command("run", "tiny.yaml", f"stages.tune.pack={pack}", *only, f"runs-{pack}", cwd=tiny.parent)
        assert said.code == 0, said.err
        (log,) = tiny.parent.glob(f"runs-{pack}/train-*/metrics.jsonl")
        logs.append([json.loads(line) for line in log.read_text().splitlines()])
    assert len({log.name for log in tiny.parent.glob("runs-*/train-*")}) == 1
    for one, other in zip(*logs, strict=True):
        assert other["lm"] == pytest.approx(one["lm"], rel=1e-5)
        assert other["norm"] == pytest.approx(one["norm"], rel=1e-4)
