"""BASIC through the lens: refined tokens that lie where visual tokens lie, against loops in fp64."""

import pytest
import torch

import mmalign
from mmalign.errors import CheckError
from mmalign.objectives import Context
from mmalign.objectives.basic import Direction, Distribution, layer_weights, refined_tokens
from mmalign.vlm import lens
from mmalign.vlm.lens import Lens, lens_of
from tests.objectives.test_basic import batch_of, build, by_hand, eager, folders, slow  # noqa: F401

LAYERS = 3


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lens, "TOKENS", 300)


def looked_through(maps, layer, state):
    """One state: over the root of its mean square, row by row of the map, fp64."""
    state, whole = state.double(), maps[layer].double()
    x = state / state.square().mean().sqrt()
    return sum(number * row for number, row in zip(x, whole[:-1], strict=True)) + whole[-1]


@pytest.mark.parametrize("shape", [(2, 15, 8, 11), (1, 2, 4, 7), (3, 9, 16, 33)])
@pytest.mark.parametrize("centred", [False, True])
def test_the_losses_and_their_gradients(shape, centred):
    """All in fp64: within 1e-9 of patch after patch, layer after layer."""
    images, patches, dim, vocab = shape
    g = torch.Generator().manual_seed(0)
    hidden, visual, embed, share = (
        torch.randn(*size, generator=g, dtype=torch.float64)
        for size in ((LAYERS, images, patches, dim), (images, patches, dim), (vocab, dim), (images, patches))
    )
    share = share.softmax(-1)
    maps = {n: torch.randn(dim + 1, dim, generator=g, dtype=torch.float64) for n in range(1, LAYERS + 1)}
    want_BPD = torch.zeros(images, patches, dim, dtype=torch.float64)
    for b in range(images):
        for p in range(patches):
            for n, weight in enumerate(layer_weights(LAYERS, "increasing"), 1):
                want_BPD[b, p] += weight * looked_through(maps, n, hidden[n - 1, b, p])
    refined = refined_tokens(hidden.requires_grad_(), lens=Lens(maps))
    assert not refined.requires_grad
    assert torch.allclose(refined, want_BPD, rtol=1e-9, atol=1e-9)
    if centred:
        refined, want_BPD = (s - s.mean(1, keepdim=True) for s in (refined, want_BPD))
    losses = mmalign.basic_direction_loss, mmalign.basic_distribution_loss
    for term, loss in enumerate(losses):
        own, exact = (visual.clone().requires_grad_() for _ in range(2))
        found = loss(own, refined, share, *[embed] * term)
        want = by_hand(exact, want_BPD, share, embed)[term]
        found.backward()
        want.backward()
        assert found.item() == pytest.approx(want.item(), rel=1e-9)
        assert (own.grad - exact.grad).norm() <= 1e-9 * exact.grad.norm() + 1e-15


@pytest.mark.parametrize("kind", [Direction, Distribution])
@pytest.mark.parametrize("subtract_mean", [False, True])
def test_in_a_pass(folders, kind, subtract_mean):  # noqa: F811
    """transformers' own hidden states, each through the lens of its layer, added up; the paper's losses of that."""
    model = build(folders, "llama", a=kind(LAYERS, space="lens", subtract_mean=subtract_mean, attention="equal"))
    batch = batch_of(model, [0, 1, 2])
    hidden, _ = eager(model, batch, LAYERS)
    maps = lens_of(model.vlm, range(1, LAYERS + 1)).maps
    at = torch.where(batch.ids_RS == model.vlm.llm.chat.mark)
    through = [torch.stack([looked_through(maps, n, s) for s in h[at]]) for n, h in enumerate(hidden, 1)]
    weighted = zip(layer_weights(LAYERS, "increasing"), through, strict=True)
    refined = sum(w * t for w, t in weighted).view(batch.images, -1, model.vlm.llm.dim)
    if subtract_mean:
        refined = refined - refined.mean(1, keepdim=True)
    visual = model.see(batch)[0].detach()
    share = torch.full(visual.shape[:2], 1 / visual.shape[1])
    want = by_hand(visual, refined, share, model.vlm.llm.vocabulary().detach())[kind is Distribution]
    terms, _ = model(batch)
    assert terms["a"].item() == pytest.approx(want.item(), rel=1e-4)
    bare = build(folders, "llama", a=kind(LAYERS, subtract_mean=subtract_mean, attention="equal"))
    assert abs(bare(batch)[0]["a"].item() - terms["a"].item()) > 1e-3 * terms["a"].item()


def test_the_gradient_reaches_the_adapter_alone(folders):  # noqa: F811
    model = build(folders, "llama", a=Direction(space="lens"), b=Distribution(space="lens"))
    model.freeze_all_but(["adapter", "llm"])
    model.train()
    terms, _ = model(batch_of(model, [0, 2]))
    (terms["a"] + terms["b"]).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.vlm.adapter.parameters())
    assert all(p.grad is None for p in [*model.vlm.llm.parameters(), *model.vlm.vision.parameters()])


def test_one_lens_for_both_terms_and_none_where_nobody_asks(folders, monkeypatch):  # noqa: F811
    fits = []
    fit = lens.fit
    monkeypatch.setattr(lens, "fit", lambda vlm, layers, token_N: fits.append(layers) or fit(vlm, layers, token_N))
    model = build(folders, "llama", a=Direction(2, space="lens"), b=Distribution(2, space="lens"))
    assert fits == [[1, 2]]
    assert len(model.looks) == 1
    build(folders, "llama", a=Direction(2))
    assert len(fits) == 1
    assert Direction(2).look is None


def test_the_texts_of_a_stage_are_taken(folders, monkeypatch):  # noqa: F811
    asked = []
    monkeypatch.setattr("mmalign.vlm.supervised.lens_of", lambda *args: asked.append(args) or lens_of(*args))
    model = build(folders, "llama", a=Direction(2, space="lens"))
    model.prepare(texts=lambda: ["a red star"])
    assert [texts for _, _, texts in asked] == [[], ["a red star"]]
    model.objectives["a"].space = "input"
    model.prepare(texts=lambda: pytest.fail("nobody needs them"))


def test_texts_of_a_file_are_taken_in_place_of_the_stages(folders, tmp_path, monkeypatch):  # noqa: F811
    """Two terms that name the same file share one lens; another file is another lens."""
    asked = []
    monkeypatch.setattr("mmalign.vlm.supervised.lens_of", lambda *args: asked.append(args) or lens_of(*args))
    for name, text in (("a.txt", "a blue ring\nwhere ?\n"), ("b.txt", "one\n")):
        (tmp_path / name).write_text(text)
    own, other = ({"space": "lens", "lens_texts": str(tmp_path / name)} for name in ("a.txt", "b.txt"))
    model = build(folders, "llama", a=Direction(2, **own), b=Distribution(2, **own), c=Direction(2, **other))
    assert [texts for _, _, texts in asked] == [["a blue ring", "where ?"], ["one"]]
    looks = [model.objectives[name].look for name in "abc"]
    assert looks[0] == looks[1] != looks[2]
    assert not torch.equal(looks[0].lens.maps[1], looks[2].lens.maps[1])
    model.prepare(texts=lambda: pytest.fail("nobody needs them"))


def test_all_ranks_look_through_the_same(folders, monkeypatch):  # noqa: F811
    sent = []
    monkeypatch.setattr("torch.distributed.get_backend", lambda: "gloo")
    monkeypatch.setattr("torch.distributed.broadcast", lambda tensor, source: sent.append((tensor, source)))
    model = build(folders, "llama", a=Direction(2, space="lens"))
    assert not sent
    model.prepare(distributed=True)
    maps = model.objectives["a"].look.lens.maps
    assert [(tensor is maps[layer], source) for layer, (tensor, source) in enumerate(sent, 1)] == [(True, 0)] * 2


def test_what_can_be_read_is_logged(folders, caplog):  # noqa: F811
    with caplog.at_level("INFO"):
        build(folders, "llama", a=Direction(2, space="lens"))
    assert "of perfect visual tokens are read right through the lens: " in caplog.text
    assert "% at layer 2" in caplog.text


def test_bad_settings():
    with pytest.raises(CheckError, match="space must be one of input, lens, got 'output'"):
        Direction(space="output")
    for kind in (Direction, Distribution):
        with pytest.raises(CheckError, match="no lens is fitted on `lens_texts`"):
            kind(lens_texts="/a.txt")
    with pytest.raises(CheckError, match="nobody here can fit a lens"):
        Distribution(space="lens").prepare(Context(layers=4))
