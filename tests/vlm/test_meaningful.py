"""Visual tokens that mean something: against loops, words under noise, and tokens of the cone alone."""

import statistics
from itertools import pairwise

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mmalign.io.wordlist import STOP
from mmalign.vlm import meaningful
from mmalign.vlm.meaningful import DRAWN, counts, without_meaning
from mmalign.vlm.vocabulary import Nearest, spelled, word_tokens
from tests.vlm.test_replacement import made

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-5}  # both are computed in fp32


def cone(rows=3000, width=64, deep=1.0, seed=0):
    """Embeddings that share a direction, as those of language models do; every second one is a word."""
    random = torch.Generator().manual_seed(seed)
    unit_TD = F.normalize(torch.randn(rows, width, generator=random) / width**0.5 + deep * torch.eye(width)[0], dim=-1)
    return Nearest(torch.arange(rows) + 7, unit_TD), torch.arange(0, rows, 2) + 7, random


def every(number):
    return True


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(15, 3), (1, 8), (600, 5)])
def test_a_token_without_meaning_by_the_definition(dtype, shape):
    near, _, random = cone(40, shape[1])
    token_ND = torch.randn(*shape, generator=random).to(dtype)
    without_ND = without_meaning(token_ND, near, torch.Generator().manual_seed(5))
    count, width = shape
    rounds = -(-DRAWN // count)
    assert without_ND.shape == (rounds * count, width)
    rows = near.unit_TD.double().tolist()
    mean = [statistics.fmean(row[d] for row in rows) for d in range(width)]
    center = [value / sum(m * m for m in mean) ** 0.5 for value in mean]
    keys = torch.rand(rounds * count, width, generator=torch.Generator().manual_seed(5)).tolist()
    for n, fast in enumerate(without_ND.tolist()):
        token = token_ND[n % count].double().tolist()
        along = sum(t * c for t, c in zip(token, center, strict=True))
        rest = [t - along * c for t, c in zip(token, center, strict=True)]
        mixed = [rest[d] for d in sorted(range(width), key=keys[n].__getitem__)]
        back = sum(m * c for m, c in zip(mixed, center, strict=True))
        mixed = [m - back * c for m, c in zip(mixed, center, strict=True)]
        scale = (sum(r * r for r in rest) / sum(m * m for m in mixed)) ** 0.5
        slow = [along * c + scale * m for c, m in zip(center, mixed, strict=True)]
        assert fast == pytest.approx(slow, abs=TOLERANCE[dtype])
        assert sum(value**2 for value in fast) == pytest.approx(sum(value**2 for value in token), rel=1e-4)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_counts_by_the_definition(dtype):
    near, words, random = cone(60, 6)
    token_ND = (near.unit_TD[:15] + 0.3 * torch.randn(15, 6, generator=random)).to(dtype)
    stop = {7, 9}

    def best(vector):
        cosines = [float(F.cosine_similarity(vector.float(), row, dim=0)) for row in near.unit_TD]
        place = max(range(60), key=cosines.__getitem__)
        return cosines[place], place + 7

    draw = torch.Generator().manual_seed(meaningful.SEED)
    first, second = ([best(one) for one in without_meaning(token_ND, near, draw)] for _ in range(2))
    bound = float(torch.tensor([cosine for cosine, _ in first]).quantile(0.99))
    own = [best(token) for token in token_ND]

    def means(pair):
        return pair[0] > bound and pair[1] in words.tolist() and pair[1] not in stop

    found = counts(token_ND, near, words, lambda number: number not in stop)
    kept = [pair for pair in own if means(pair)]
    assert found[:3] == (sum(n in words.tolist() for _, n in own), len(kept), len({n for _, n in kept}))
    assert found[3] == pytest.approx(sum(n in words.tolist() for _, n in second) / len(second))
    assert found[4] == pytest.approx(sum(map(means, second)) / len(second), abs=1.5 / len(second))
    assert found[5] == pytest.approx(bound, abs=1e-5)


def test_the_share_falls_with_noise_and_the_control_stays_at_chance():
    near, words, random = cone()
    embeds = near.unit_TD[words[:400] - 7]
    shares = []
    for noise in (0.0, 0.5, 1.0, 2.0, 4.0, 16.0):
        token_ND = embeds + noise * torch.randn(embeds.shape, generator=random) / 8
        _, kept, _, words_control, control, _ = counts(token_ND, near, words, every)
        shares.append(kept / 400)
        assert control < 0.03
        assert 0.3 < words_control <= 1
    assert shares[0] > 0.97
    assert all(later <= earlier + 0.01 for earlier, later in pairwise(shares))
    assert shares[-1] < 0.05


@pytest.mark.parametrize("deep", [0.0, 1.0, 3.0])
def test_tokens_in_the_cone_and_of_no_word_mean_nothing(deep):
    """They are nearer to every word than any token of random direction, and still to none."""
    near, words, random = cone(deep=deep)
    center = near.unit_TD.mean(0)
    inside = center + 0.3 * center.norm() * torch.randn(400, 64, generator=random) / 8
    outside = torch.randn(400, 64, generator=random)
    for token_ND in (inside, outside):
        _, kept, _, _, control, _ = counts(token_ND, near, words, every)
        assert kept / 400 < 0.05
        assert control < 0.05
    if deep:
        assert near(inside)[0].mean() > near(outside)[0].max()


def test_function_words_and_pieces_mean_nothing():
    near, words, _ = cone()
    embeds = near.unit_TD[:100]
    kept = counts(embeds, near, words, every)
    assert kept[0] == 50
    assert 45 <= kept[1] == kept[2] <= 50
    assert counts(embeds, near, words, lambda number: False)[:3] == (50, 0, 0)


def test_one_word_many_times_is_told():
    near, words, _ = cone()
    assert counts(near.unit_TD[10].expand(64, -1), near, words, every)[:3] == (64, 64, 1)


# Of a model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return made(tmp_path_factory.mktemp("parts"))


def picture(width=50, height=35):
    return Image.effect_noise((width, height), 90).convert("RGB")


def test_of_each_image_and_layer(model, monkeypatch):
    """Tokens that are words; a function word among them and pieces of words do not count."""
    tokenizer = model.llm.chat.tokenizer
    numbers = word_tokens(model.llm).tolist()
    stop = [n for n in numbers if spelled(tokenizer, n).lower() in STOP][:1]
    said = [n for n in numbers if spelled(tokenizer, n).lower() not in STOP][:11]
    pieces = [n for n in range(60, 200) if n not in numbers][:3]
    embeds = model.llm.embed(torch.tensor([*said, *stop, *pieces])).detach()
    assert [len(said), len(stop), len(pieces)] == [11, 1, 3]
    monkeypatch.setattr(model.adapter, "forward", lambda patches: embeds.expand(len(patches), -1, -1))
    pictures = [picture(), picture(30, 30)]
    found = model.meaningful(pictures, [2, 0], ["a", "b"])
    assert [(one.image, one.layer, one.tokens) for one in found] == [
        ("a", 2, 15),
        ("a", 0, 15),
        ("b", 2, 15),
        ("b", 0, 15),
    ]
    assert (found[1].words, found[1].meaningful, found[1].distinct) == (12, 11, 11)
    assert found[1].control < 0.03
    assert found[1].words == sum(n in numbers for n in model.nearest_tokens(pictures[0])[0][1].flatten().tolist())
    assert str(found[1]).startswith("layer 0: 11 of 15 tokens mean something, 11 different words (")
    assert str(found[1]).endswith(f"; nearest to a word 12 ({found[1].words_control:.1%})")


def test_of_a_list_every_entry_is_a_word(model, monkeypatch):
    listed = ["star", "The", "unbelievable", *map(str, range(40))]
    means = model.word_embeddings(listed).embeddings(torch.arange(15)).detach()
    monkeypatch.setattr(model.adapter, "forward", lambda patches: means.expand(len(patches), -1, -1))
    (one,) = model.meaningful(picture(), words=listed)
    assert one.words == 15
    assert one.distinct == one.meaningful == 14  # `The` is one of no meaning


def test_padding_is_left_out(model, monkeypatch):
    shown = [True] * 9 + [False] * 6
    monkeypatch.setattr("mmalign.vision.Frame.seen", lambda self: shown)
    assert model.meaningful(picture())[0].tokens == 9
    monkeypatch.setattr("mmalign.vision.Frame.seen", lambda self: [False] * 15)
    assert str(model.meaningful(picture())[0]).startswith(
        "layer 0: 0 of 0 tokens mean something, 0 different words (0.0%"
    )
