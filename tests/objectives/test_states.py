"""Hidden states with a gradient, as objectives get them: transformers' own, with every kind of checkpointing."""

import pytest
import torch

from mmalign.errors import CheckError
from mmalign.objectives import Objective, numbered
from mmalign.objectives.lm import NextToken
from mmalign.vlm.supervised import reached
from tests import parts
from tests.objectives.test_basic import batch_of, build

LAYERS = (0, 1, 3, 4)  # of 4


class Sums(Objective):
    """Of everything it is handed, each number times a weight of its own."""

    needs = frozenset({"states", "captions"})

    def prepare(self, context):
        self.state_layers = LAYERS

    def forward(self, step):
        self.step = step
        kept = [step.states[layer] for layer in LAYERS] + [step.captions[layer] for layer in LAYERS]
        return sum((weights(hidden) * hidden.float()).sum() for hidden in kept)


class Visual(Sums):
    needs = frozenset({"states"})

    def forward(self, step):
        self.step = step
        return sum((weights(hidden) * hidden.float()).sum() for hidden in step.states.values())


def weights(hidden):
    return torch.arange(hidden.numel()).view(hidden.shape).mul(0.37).sin()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        "clip": parts.clip(tmp_path_factory.mktemp("clip")),
        **{f: parts.llm(f, tmp_path_factory.mktemp(f), num_hidden_layers=4) for f in ("llama", "gemma", "phi")},
    }


def by_hand(model, batch):
    """(visual, captions, sample_B, caption_M) of transformers' hidden states, image by image, in its autograd graph."""
    position_RS = (batch.mask_RS.long().cumsum(-1) - 1).clamp(min=0)
    embeds = model.embed(batch, model.see(batch)[0])
    out = model.vlm.llm.lm.base_model(
        inputs_embeds=embeds, attention_mask=batch.mask_RS, position_ids=position_RS, use_cache=False,
        output_hidden_states=True,
    )  # fmt: skip
    hidden = [embeds, *out.hidden_states[1:]]
    tokens, visual, captions, sample_B, caption_M = model.vlm.tokens, [], [], [], []
    with_image = 0
    for row in range(len(batch.ids_RS)):
        columns = (batch.ids_RS[row] == model.vlm.llm.chat.mark).nonzero()[:, 0].tolist()
        for start in range(0, len(columns), tokens):
            visual.append((row, columns[start : start + tokens]))
            sample_B.append(with_image)
        if columns:
            trained = batch.weight_RS[row].nonzero()[:, 0].tolist()
            captions += [(row, column) for column in trained]
            caption_M += [with_image] * len(trained)
            with_image += 1
    at_visual = [torch.stack([hidden[layer][row, own] for row, own in visual]) for layer in LAYERS]
    at_captions = [torch.stack([hidden[layer][row, column] for row, column in captions]) for layer in LAYERS]
    return at_visual, at_captions, sample_B, caption_M


@pytest.mark.parametrize("family", ["llama", "gemma", "phi"])
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_states_and_their_gradient_are_those_of_transformers(folders, family, reentrant):
    model = build(folders, family, lm=NextToken(), sums=Sums())
    model.freeze_all_but(["adapter", "llm"])
    batch = batch_of(model, [0, 1, 2, 3])  # an image, none, two, one
    visual, captions, sample_B, caption_M = by_hand(model, batch)
    sum((weights(hidden) * hidden).sum() for hidden in [*visual, *captions]).backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.train()
    if reentrant is not None:
        lm = model.vlm.llm.lm
        new = getattr(lm, "activation_checkpointing_enable", None)  # as transformers calls it since 5.23
        (new or lm.gradient_checkpointing_enable)({"use_reentrant": reentrant})
    model(batch)[0]["sums"].backward()
    step = model.objectives["sums"].step
    for number, layer in enumerate(LAYERS):
        assert torch.allclose(step.states[layer], visual[number], atol=1e-5)
        assert torch.allclose(step.captions[layer], captions[number], atol=1e-5)
    assert step.sample_B.tolist() == sample_B == [0, 1, 1, 2]
    assert step.caption_M.tolist() == caption_M
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        assert torch.allclose(got[name], gradient, rtol=1e-3, atol=1e-5), name


def test_samples_that_share_a_row_have_captions_of_their_own(folders):
    model = build(folders, "llama", sums=Sums())
    apart = batch_of(model, [0, 2])
    model(apart)
    one = model.objectives["sums"].step
    lengths = apart.mask_RS.sum(1).tolist()
    packed = batch_of(model, [0, 2])
    for name in ("ids_RS", "mask_RS", "weight_RS"):
        rows = getattr(apart, name).clone()
        if name == "mask_RS":
            rows *= torch.tensor([[1], [2]])
        setattr(packed, name, torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)])[None])
    model(packed)
    other = model.objectives["sums"].step
    assert one.sample_B.tolist() == other.sample_B.tolist() == [0, 1, 1]
    assert one.caption_M.tolist() == other.caption_M.tolist()
    for layer in LAYERS:
        assert torch.allclose(one.states[layer], other.states[layer], atol=1e-5)
        assert torch.allclose(one.captions[layer], other.captions[layer], atol=1e-5)


def test_a_pass_without_images_goes_back_through_every_layer(folders):
    """Under ZeRO-3 the other ranks wait in them."""
    model = build(folders, "llama", visual=Visual())
    model.freeze_all_but(["adapter", "llm"])
    loss = model(batch_of(model, [1]))[0]["visual"]
    assert loss == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.vlm.llm.lm.base_model.layers.parameters())


def test_nobody_keeps_what_no_objective_asked_for(folders, monkeypatch):
    model = build(folders, "llama", lm=NextToken())
    monkeypatch.setattr(type(model.vlm.llm), "keeping", lambda *_: pytest.fail("nobody asked"))
    seen = {}
    model.objectives["lm"].register_forward_pre_hook(lambda _m, inputs: seen.update(vars(inputs[0])))
    model(batch_of(model, [0]))
    assert not {"states", "captions", "normed", "sample_B"} & set(seen)
    monkeypatch.undo()
    model = build(folders, "llama", visual=Visual())
    model(batch_of(model, [0]))
    assert "captions" not in vars(model.objectives["visual"].step)
    assert reached(model.objectives["visual"].step.states[4])


def test_a_language_model_that_keeps_none_is_refused(folders):
    model = build(folders, "llama", visual=Visual())
    model.vlm.llm.keeps_states = False
    with pytest.raises(
        CheckError, match="visual needs hidden states with a gradient, which CausalLM does not hand out"
    ):
        model.prepare()


def test_the_numbers_of_layers():
    assert [numbered(layer, 8) for layer in (0, 8, "last")] == [0, 8, 8]
    for layer, what in ((9, "layer is 9, and the language model has 8"), (-1, "got -1"), (True, "got True")):
        with pytest.raises(CheckError, match=what):
            numbered(layer, 8)
