"""The parts of eleven families, and what is said of a model that does not tell them."""

import copy
import re
from functools import cache

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from mmalign.errors import CheckError, RunError
from mmalign.integrations import declared
from mmalign.integrations.checkpoint import Checkpoint
from mmalign.integrations.partition import partition
from tests.integrations import families

BETWEEN = {  # modules between tower and language model
    "llava": "multi_modal_projector", "llava_onevision": "multi_modal_projector|image_newline",
    "qwen2_5_vl": "visual.merger", "idefics3": "connector", "smolvlm": "connector", "gemma3": "multi_modal_projector",
    "internvl": "multi_modal_projector", "paligemma": "multi_modal_projector",
    "llava_next": "multi_modal_projector|image_newline", "qwen3_vl": "visual.(merger|deepstack_merger_list)",
    "mistral3": "multi_modal_projector",
}  # fmt: skip
made = cache(families.make)


@pytest.mark.parametrize("family", [*families.FAMILIES, *families.MORE])
def test_the_parts_of_a_family(family):
    model, processor = made(family)
    learn = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    told = partition(declared.parts(model, processor))
    assert sum(map(len, told.values())) == len(learn)
    names = {part: {name for name, _ in own} for part, own in told.items()}
    between = {name for name in learn if re.match(rf"model\.({BETWEEN[family]})", name)}
    assert names["adapter"] == between
    assert names["llm"] == {name for name in learn if re.match(r"model\.(language_model|text_model)|lm_head", name)}
    assert names["vision"] == learn.keys() - between - names["llm"]
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == learn


def refused(change):
    model, processor = made("llava")
    model = copy.deepcopy(model)
    change(model)
    with pytest.raises(CheckError) as caught:
        partition(declared.parts(model, processor))
    assert (caught.value.at, caught.value.fix) == ("trains", "`trains` without it, or another model: mmalign list vlms")
    return caught.value.what


def test_no_tower():
    def change(model):
        model.get_encoder = lambda modality: model

    assert refused(change) == 'a llava model does not declare get_encoder("image"): its vision tower'


def test_a_tower_that_is_not_called():
    def change(model):
        other = copy.deepcopy(model.model.vision_tower)
        model.get_encoder = lambda modality: other

    assert refused(change) == "a llava model does not declare what its vision tower gives: it was not called"


def test_nothing_between():
    def change(model):
        model.model.multi_modal_projector = torch.nn.Linear(24, 32, bias=False).requires_grad_(False)
        model.model.multi_modal_projector.weight = None  # no parameter
        model.model.multi_modal_projector.forward = lambda patches: torch.nn.functional.pad(patches, (0, 8))

    what = "a llava model does not declare which of its parameters are what is between its tower and its language model"
    assert refused(change) == what


# As a recipe names it


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    for one in made("qwen2_5_vl"):
        one.save_pretrained(folder)
    return Checkpoint(str(folder))


def test_what_learns(own):
    own.train().freeze_all_but(["adapter"])
    learn = {name for name, parameter in own.whole.named_parameters() if parameter.requires_grad}
    assert learn == {name for name, _ in own.parts_of["adapter"]}
    tower = own.whole.get_encoder(modality="image")
    assert not any(module.training for module in [*tower.modules(), *own.llm.body.modules()])
    own.freeze_all_but(["vision", "llm"])
    assert all(module.training for module in [*tower.modules(), *own.llm.body.modules()])
    own.eval()


def test_layers_are_recomputed_though_they_are_frozen(own):
    own.train().freeze_all_but(["adapter"])
    own.checkpoint_activations()
    layers = [layer for layer in own.whole.modules() if isinstance(layer, GradientCheckpointingLayer)]
    assert len(layers) >= 3
    assert all(layer.gradient_checkpointing and layer.forward.recomputes for layer in layers)
    own.whole.gradient_checkpointing_disable()
    own.eval()


def test_rotary_positions_keep_their_precision(own):
    twin = copy.deepcopy(own)
    before = [frequencies.clone() for *_, frequencies in own._frequencies]
    assert len(before) >= 2
    own.to(torch.bfloat16)
    after = [getattr(module, name) for module, name, _ in own._frequencies]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert own.llm.words.weight.dtype == torch.bfloat16
    own.float().load_state_dict(twin.state_dict())


def test_weights_of_another_model(own):
    own.put({"lm_head.weight": own.whole.lm_head.weight.detach() * 1})
    for name, value in (("lm_head.bias", torch.zeros(3)), ("lm_head.weight", torch.zeros(3, 4))):
        with pytest.raises(RunError) as caught:
            own.put({name: value})
        what = f"weights of {name}, {tuple(value.shape)}, and {own.checkpoint} has none such"
        assert caught.value.what == what
        assert caught.value.fix == "run the stage that wrote them again: --force its name"
