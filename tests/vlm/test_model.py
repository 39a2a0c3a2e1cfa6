"""The model: visual tokens in their places, the loss of transformers' own Llava, and nothing computed in vain."""

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from mmalign.adapters.mlp import MLP
from mmalign.data import Data, Record, Turn
from mmalign.errors import CheckError, DataError, StageError
from mmalign.llms.causal import CausalLM
from mmalign.objectives import Words
from mmalign.objectives.lm import NextToken
from mmalign.objectives.sea import SEA
from mmalign.testing import small
from mmalign.training.batches import BadSamples, Collate
from mmalign.vision.hf import HFVision
from mmalign.vlm.batch import Batch
from mmalign.vlm.model import VLM
from mmalign.vlm.supervised import PassLabels, Supervised, counts, keep_reached, reached
from tests import parts

VISION = {"clip": parts.clip, "siglip": parts.siglip}
# but one whose logits are capped, and one whose head has a bias, which Llava's are not and has not
LLAVAS = [family for family in small.LLMS if family not in ("gemma2", "phi")]


def picture(seed, size=40):
    g = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 255, (size, size, 3), generator=g).byte().numpy())


class Talks(Data):
    """Rows with one image, none, two, and a long one."""

    said = ("What colour is the star?", "Describe this image.")

    def __len__(self):
        return 5

    def __getitem__(self, number):
        marks = [1, 0, 2, 1, 1][number]
        user = "<image>\n" * marks + self.said[number % 2]
        answer = ["red", "Yes", "a large blue ring", "The red star is left of a large blue ring. " * 3, "No"][number]
        turns = Turn("user", user), Turn("assistant", answer)
        return Record(f"row-{number}", turns, tuple(range(number, number + marks)))

    def image(self, reference):
        if reference == 99:
            raise DataError("image 99 is truncated")
        return picture(reference)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def get(kind, make, **more):
        if kind not in made:
            made[kind] = make(tmp_path_factory.mktemp(kind), **more)
        return str(made[kind])

    return get


def build(folders, vision="clip", family="llama", objectives=None, **more):
    torch.manual_seed(0)
    eye = HFVision(folders(vision, VISION[vision]))
    mouth = CausalLM(folders(family, lambda place: parts.llm(family, place)))
    made = objectives or {"lm": NextToken()}
    return Supervised(VLM(eye, MLP(eye.dim, mouth.dim, eye.grid), mouth), made, **more).eval()


def collate(model, data=None, **more):
    data = data or Talks()
    return Collate(data, model.vlm.llm.chat, model.vlm.vision, model.vlm.adapter.tokens, 200, BadSamples(3), **more)


def llava(model, batch):
    """transformers' Llava with the same weights."""
    eye, mouth = model.vlm.vision, model.vlm.llm
    config = LlavaConfig(
        vision_config=eye.tower.config,
        text_config=mouth.lm.config,
        image_token_index=model.vlm.llm.chat.mark,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if eye.tower.config.model_type.startswith("clip") else "full",
    )
    whole = LlavaForConditionalGeneration(config).eval()
    inner = whole.model
    tower = getattr(inner.vision_tower, "vision_model", inner.vision_tower)
    tower.load_state_dict(eye.tower.state_dict(), strict=False)
    first, second = model.vlm.adapter.layers[0], model.vlm.adapter.layers[2]
    inner.multi_modal_projector.linear_1.load_state_dict(first.state_dict())
    inner.multi_modal_projector.linear_2.load_state_dict(second.state_dict())
    inner.language_model.load_state_dict(mouth.lm.base_model.state_dict())
    whole.lm_head.load_state_dict(mouth.lm.get_output_embeddings().state_dict())
    return whole


@pytest.mark.parametrize("family", LLAVAS)
@pytest.mark.parametrize("vision", list(VISION))
@torch.no_grad()
def test_the_loss_is_that_of_transformers_llava(folders, vision, family):
    model = build(folders, vision, family)
    batch = collate(model).batch([0, 2, 3], seed=0)
    terms, _ = model(batch)
    whole = llava(model, batch)
    labels = batch.ids_RS.masked_fill(batch.weight_RS == 0, -100)
    ids = batch.ids_RS  # the mark's id is inside the vocabulary of this config
    found = whole(input_ids=ids, pixel_values=batch.pixels_B3SS, attention_mask=batch.mask_RS, labels=labels)
    assert terms["lm"].item() == pytest.approx(found.loss.item(), rel=1e-5)


def logits(model, batch):
    return model.vlm(batch.ids_RS, batch.mask_RS, batch.pixels_B3SS)


@pytest.mark.parametrize("family", LLAVAS)
@pytest.mark.parametrize("vision", list(VISION))
@torch.no_grad()
def test_the_logits_are_those_of_transformers_llava(folders, vision, family):
    """Row by row: one image, none, two, and a row with a long answer."""
    model = build(folders, vision, family)
    whole = llava(model, collate(model).batch([0], seed=0))
    for number in range(4):
        batch = collate(model).batch([number], seed=0)
        found = whole(input_ids=batch.ids_RS, pixel_values=batch.pixels_B3SS, attention_mask=batch.mask_RS)
        assert torch.allclose(logits(model, batch), found.logits, atol=1e-5, rtol=0)


def to_the_right(batch):
    """The same rows, padded in front."""
    for name in ("ids_RS", "mask_RS", "weight_RS"):
        for row, length in zip(getattr(batch, name), batch.mask_RS.sum(1).tolist(), strict=True):
            row.copy_(row.roll(len(row) - length))
    return batch


@pytest.mark.parametrize("family", list(small.LLMS))
@pytest.mark.parametrize("vision", list(VISION))
@torch.no_grad()
def test_batch_size_and_the_side_of_padding_change_no_logit(folders, vision, family):
    model = build(folders, vision, family)
    make = collate(model)
    rows = [0, 1, 2, 3, 4, 3, 1, 0]
    right = make.batch(rows, seed=0)
    left = to_the_right(make.batch(rows, seed=0))
    assert left.mask_RS[:, 0].tolist() != right.mask_RS[:, 0].tolist()
    alone = torch.cat([logits(model, make.batch([number], seed=0))[0] for number in rows])
    for batch in (right, left):
        assert torch.allclose(logits(model, batch)[batch.mask_RS > 0], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_visual_tokens_stand_where_the_marks_were(folders):
    model = build(folders)
    batch = collate(model).batch([2, 1, 0], seed=0)
    visual_BQD, _ = model.see(batch)
    embeds_RSD = model.embed(batch, visual_BQD)
    at = batch.ids_RS == model.vlm.llm.chat.mark
    assert torch.equal(embeds_RSD[at], visual_BQD.flatten(0, 1))
    assert torch.equal(embeds_RSD[~at], model.vlm.llm.embed(batch.ids_RS[~at]))
    assert at.sum(1).tolist() == [50, 0, 25]


def test_a_text_only_pass_trains_the_same_parameters(folders):
    """No rank may wait for gradients another never makes: encoder and adapter see a blank image, at no weight."""
    model = build(folders, objectives={"lm": NextToken(), "sea": SEA()})
    model._labels = (PassLabels(Words(["red"], torch.zeros(1, 1).long(), model.vlm.llm.embed)),)
    model.freeze_all_but(["adapter"])
    batch = collate(model).batch([1], seed=0)
    terms, _ = model(batch)
    (terms["lm"] + terms["sea"]).backward()
    assert terms["sea"].item() == 0
    for parameter in [*model.vlm.adapter.parameters(), *model.objectives.parameters()]:
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_a_text_only_pass_goes_back_through_a_frozen_language_model(folders):
    """Under ZeRO-3 the ranks with images gather its layers again on the way to the adapter, and wait for the others."""
    model = build(folders)
    model.freeze_all_but(["adapter"])
    batch = collate(model).batch([1], seed=0)
    visual_BQD, _ = model.see(batch)
    embeds_RSD = model.embed(batch, visual_BQD)
    assert embeds_RSD.requires_grad
    assert torch.equal(embeds_RSD, model.vlm.llm.embed(batch.ids_RS))


@torch.no_grad()
def test_images_do_not_leak_between_rows(folders):
    model = build(folders)
    make = collate(model)
    alone = model(make.batch([0], seed=0))[0]["lm"]
    other = model(make.batch([3], seed=0))[0]["lm"]
    both = make.batch([0, 3], seed=0)
    share = both.weight_RS.sum(1) / both.weight_RS.sum()
    assert model(both)[0]["lm"].item() == pytest.approx((share[0] * alone + share[1] * other).item(), rel=1e-5)


@torch.no_grad()
def test_the_head_sees_trained_rows_only(folders):
    model = build(folders)
    batch = collate(model).batch([0, 3], seed=0)
    seen = []
    model.vlm.llm.lm.get_output_embeddings().register_forward_hook(lambda _m, given, _o: seen.append(given[0].shape[0]))
    model(batch)
    assert seen == [int((batch.weight_RS[:, 1:] > 0).sum())]


@torch.no_grad()
def test_layers_above_the_chosen_one_are_not_run(folders):
    model = build(folders)
    ran = []
    for number, layer in enumerate(model.vlm.vision.tower.encoder.layers):
        layer.register_forward_hook(lambda *_a, n=number: ran.append(n))
    model(collate(model).batch([0], seed=0))
    assert ran == [0, 1]


def test_frozen_parts_stay_in_eval_mode_and_get_no_gradient(folders):
    model = build(folders)
    model.freeze_all_but(["adapter"])
    model.train()
    assert model.vlm.adapter.training
    assert not model.vlm.vision.training
    assert not model.vlm.llm.training
    terms, _ = model(collate(model).batch([0], seed=0))
    terms["lm"].backward()
    assert all(p.grad is None for p in [*model.vlm.vision.parameters(), *model.vlm.llm.parameters()])
    assert all(p.grad is not None for p in model.vlm.adapter.parameters())


def test_counts_say_what_trains(folders):
    model = build(folders, objectives={"lm": NextToken(), "sea": SEA()})
    model.freeze_all_but(["adapter"])
    found = counts(model)
    assert found["adapter"][0] == found["adapter"][1] == sum(p.numel() for p in model.vlm.adapter.parameters())
    assert found["llm"][1] == found["vision"][1] == 0
    assert found["objectives"] == (1, 1)


def test_a_part_no_loss_reaches_is_refused(folders):
    model = build(folders, objectives={"sea": SEA()})
    model._labels = (PassLabels(Words(["red"], torch.zeros(1, 1).long(), lambda ids: torch.randn(*ids.shape, 32))),)
    model.freeze_all_but(["adapter", "llm"])
    batch = collate(model).batch([0], seed=0)
    batch.words_BPK, batch.scores_BPK = torch.zeros(1, 25, 1).long(), torch.ones(1, 25, 1)
    terms, _ = model(batch)
    with pytest.raises(CheckError, match="lists 'llm', but sea gives it no gradient"):
        keep_reached(model, terms)


def test_parameters_no_loss_reaches_are_frozen(folders):
    model = build(folders)
    model.freeze_all_but(["vision", "adapter"])
    terms, _ = model(collate(model).batch([0], seed=0))
    keep_reached(model, terms)
    trained = {name for name, p in model.vlm.vision.named_parameters() if p.requires_grad}
    assert any(name.startswith("tower.encoder.layers.1.") for name in trained)
    assert not any("layers.2." in name or "post_layernorm" in name or "project" in name for name in trained)


def test_words_without_a_token_are_never_drawn(folders):
    model = build(folders, objectives={"sea": SEA()})
    silent = Words(["red", ""], torch.tensor([[4], [-1]]), model.vlm.llm.embed)
    model._labels = (PassLabels(silent),)
    batch = collate(model).batch([0], seed=0)
    batch.words_BPK = torch.tensor([0, 1]).expand(1, 25, 2)
    batch.scores_BPK = torch.tensor([0.1, 0.9]).expand(1, 25, 2).contiguous()
    batch.scores_BPK[:, 10:, 0] = 0  # those patches show only the word that has no token
    seen = {}
    model.objectives["sea"].register_forward_pre_hook(lambda _m, given: seen.update(step=given[0]))
    model(batch)
    words_NK, scores_NK = seen["step"].labels(torch.arange(25))
    assert torch.equal(scores_NK > 0, batch.scores_BPK[0] * (words_NK == 0) > 0)


def test_reached_walks_the_graph():
    a, b, c = (nn.Parameter(torch.ones(2)) for _ in range(3))
    loss = ((a * 2).tanh() + b.detach()).sum() * (c.sum() * 0 + 1)
    assert reached(loss) == {id(a), id(c)}


def test_an_adapter_that_lies_about_its_tokens_is_named(folders):
    model = build(folders)
    batch = collate(model).batch([0], seed=0)
    with pytest.raises(StageError, match="25 places for visual tokens, 24 tokens"):
        model.embed(batch, torch.zeros(1, 24, 32))


def test_an_adapter_whose_tokens_have_another_width_is_told_so(folders):
    model = build(folders)
    batch = collate(model).batch([0], seed=0)
    width = model.embed(batch, None).shape[-1]
    with pytest.raises(StageError, match=f"visual tokens have {width + 1} numbers, the language model's words {width}"):
        model.embed(batch, torch.zeros(1, 25, width + 1))


def test_the_passs_random_numbers_are_its_own(folders):
    model = build(folders)
    batch = Batch(torch.zeros(1, 1).long(), torch.ones(1, 1).long(), torch.zeros(1, 1), None, seed=3)
    torch.manual_seed(0)
    first = torch.rand(3, generator=model._random(batch))
    torch.manual_seed(1)
    assert torch.equal(first, torch.rand(3, generator=model._random(batch)))
