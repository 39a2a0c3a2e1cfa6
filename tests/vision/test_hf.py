"""Patches are transformers' hidden states; dense features and words are what the checkpoints' own parts give."""

import shutil

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, Siglip2Config, Siglip2Model, SiglipImageProcessor, ViTConfig, ViTModel

from mmalign.errors import CardError
from mmalign.testing import check_vision
from mmalign.vision import hf
from mmalign.vision.hf import HFVision
from tests.vision import tiny
from tests.vision.tiny import KINDS, TEXTED, encoder, picture, pixels


def states(folder, pixels_B3SS):
    """transformers' hidden_states and last_hidden_state."""
    model = AutoModel.from_pretrained(folder).eval()
    tower = getattr(model, "vision_model", model)
    with torch.no_grad():
        out = tower(pixels_B3SS, output_hidden_states=True)
    return out.hidden_states, out.last_hidden_state


@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind, folders, tmp_path):
    check_vision(lambda: HFVision(str(folders[kind])), tmp_path, lambda folder: HFVision(str(folder)))


@pytest.mark.parametrize("layer", [-1, -2, -3, 1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_patches_are_transformers_hidden_states(kind, layer, folders):
    vision = encoder(folders[kind], layer=layer)
    pixels_B3SS = pixels(vision)
    hidden, _ = states(folders[kind], pixels_B3SS)
    assert len(hidden) == 4
    assert torch.allclose(vision(pixels_B3SS), hidden[layer][:, -vision.patches :], atol=1e-6)


def test_tokens_before_the_patches():
    """CLIP and DINOv2 have a class token, the latter may have registers, SigLIP has neither."""
    assert {kind: architecture.has_class_token for kind, architecture in hf.ARCHITECTURES.items()} == {
        "clip_vision_model": True,
        "siglip_vision_model": False,
        "dinov2": True,
        "dinov2_with_registers": True,
        "dinov3_vit": True,
    }


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_patch_i_is_where_patch_i_is(kind, folders):
    """A pixel that changes moves its own patch most: no token before the patches is taken for one of them."""
    vision = encoder(folders[kind], layer=1)
    pixels_B3SS = pixels(vision, 1)
    before_BPC = vision(pixels_B3SS)
    for row, column in ((0, 0), (0, vision.grid[1] - 1), (2, 1)):
        changed_B3SS = pixels_B3SS.clone()
        changed_B3SS[..., 6 * row : 6 * row + 6, 6 * column : 6 * column + 6] += 2
        moved_P = (vision(changed_B3SS) - before_BPC).norm(dim=-1)[0]
        assert int(moved_P.argmax()) == row * vision.grid[1] + column


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_norm_is_the_final_one(kind, folders):
    vision = encoder(folders[kind], layer=-1, norm=True)
    pixels_B3SS = pixels(vision)
    hidden, last = states(folders[kind], pixels_B3SS)
    expected = vision.tower.post_layernorm(hidden[-1]) if kind == "clip" else last
    assert torch.allclose(vision(pixels_B3SS), expected[:, -vision.patches :], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_layers_above_are_not_run(kind, folders):
    vision = encoder(folders[kind], layer=2)
    calls = []
    for number, layer in enumerate(vision._layers(), 1):
        layer.register_forward_hook(lambda *_, number=number: calls.append(number))
    vision(pixels(vision))
    assert calls == [1, 2]
    if vision.joint:
        calls.clear()
        vision.both(pixels(vision))
        assert calls == [1, 2, 3]  # one pass


@torch.no_grad()
def test_dense_clip_is_norm_and_projection_of_each_patch(folders):
    vision = encoder(folders["clip"])
    pixels_B3SS = pixels(vision)
    model = AutoModel.from_pretrained(folders["clip"]).eval()
    last = model.vision_model(pixels_B3SS).last_hidden_state
    _, dense_BPJ = vision.both(pixels_B3SS)
    for image in range(2):
        for patch in range(vision.patches):
            expected = model.visual_projection(model.vision_model.post_layernorm(last[image, 1 + patch]))
            assert torch.allclose(dense_BPJ[image, patch], expected, atol=1e-5)
    pooled = model.visual_projection(model.vision_model.post_layernorm(last[:, 0]))  # the same steps on the class token
    assert torch.allclose(pooled, hf._pooled(model.get_image_features(pixels_B3SS)), atol=1e-5)


@torch.no_grad()
def test_dense_siglip_is_the_head_on_each_patch_by_itself(folders):
    vision = encoder(folders["siglip"])
    pixels_B3SS = pixels(vision)
    model = AutoModel.from_pretrained(folders["siglip"]).eval()
    last = model.vision_model(pixels_B3SS).last_hidden_state  # after the final norm
    _, dense_BPJ = vision.both(pixels_B3SS)
    for image in range(2):
        for patch in range(vision.patches):
            expected = model.vision_model.head(last[image : image + 1, patch : patch + 1])
            assert torch.allclose(dense_BPJ[image, patch], expected[0], atol=1e-5)


TEXTS = ["dog", "a photo of a red car", "red house"]


@pytest.mark.parametrize("kind", TEXTED)
@torch.no_grad()
def test_words_are_the_text_towers(kind, folders):
    """Both towers at full length, which is how they were trained."""
    model = AutoModel.from_pretrained(folders[kind]).eval()
    encoding = tiny.tokenizer()(TEXTS, padding="max_length", max_length=9, return_tensors="pt")
    expected = F.normalize(hf._pooled(model.get_text_features(encoding["input_ids"])), dim=-1)
    assert torch.allclose(encoder(folders[kind]).words(TEXTS), expected, atol=1e-6)


@torch.no_grad()
def test_clip_may_stop_at_the_longest_word_and_siglip_may_not(folders):
    def pooled(kind, padding):
        model = AutoModel.from_pretrained(folders[kind]).eval()
        encoding = tiny.tokenizer()(["dog", "red"], padding=padding, max_length=9, return_tensors="pt")
        return hf._pooled(model.get_text_features(encoding["input_ids"]))

    assert torch.allclose(pooled("clip", "longest"), pooled("clip", "max_length"), atol=1e-6)
    assert not torch.allclose(pooled("siglip", "longest"), pooled("siglip", "max_length"), atol=1e-2)


@torch.no_grad()
def test_siglip_pads_on_the_right_without_a_mask_and_in_lower_case(folders, tmp_path):
    folder = shutil.copytree(folders["siglip"], tmp_path / "left")
    left = tiny.tokenizer()
    left.padding_side = "left"
    left.save_pretrained(folder)
    words = encoder(folders["siglip"]).words
    assert torch.equal(words(["red dog"]), encoder(folder).words(["red dog"]))
    assert torch.equal(words(["red dog"]), words(["Red Dog"]))


@torch.no_grad()
def test_words_in_batches(folders, monkeypatch):
    vision = encoder(folders["clip"])
    text_WJ = vision.words(TEXTS)
    monkeypatch.setattr(hf, "TEXTS", 2)
    assert torch.allclose(vision.words(TEXTS), text_WJ, atol=1e-6)


@torch.no_grad()
def test_another_image_size_stretches_the_position_embeddings(folders):
    for kind in ("clip", "siglip", "dinov2"):
        vision = encoder(folders[kind], image_size=42, layer=-1)
        assert vision.image_size == 42
        assert vision.grid == (7, 7)
        pixels_B3SS = pixels(vision)
        model = AutoModel.from_pretrained(folders[kind]).eval()
        tower = getattr(model, "vision_model", model)
        options = {} if kind == "dinov2" else {"interpolate_pos_encoding": True}
        hidden = tower(pixels_B3SS, output_hidden_states=True, **options).hidden_states
        assert torch.allclose(vision(pixels_B3SS), hidden[-1][:, -49:], atol=1e-6)


def test_the_checkpoints_processor_prepares_images(folders):
    from transformers import AutoImageProcessor

    for kind in KINDS:
        vision, image = encoder(folders[kind]), picture()
        own = AutoImageProcessor.from_pretrained(folders[kind])(images=image, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(vision.pixels(image), own)


def test_an_image_size_of_our_own_keeps_the_whole_short_side(folders):
    """DINOv2's processor cuts a margin away; with `image_size` a padded image is seen whole."""
    own = encoder(folders["dinov2"]).processor
    mean, std = (torch.tensor(x)[:, None, None] for x in (own.image_mean, own.image_std))
    image = picture(40, 40)
    image.paste((255, 0, 0), (0, 0, 2, 40))
    image.paste((255, 0, 0), (38, 0, 40, 40))
    pixels_3SS = [encoder(folders["dinov2"], image_size=size).pixels(image) * std + mean for size in (None, 40)]
    assert torch.allclose(pixels_3SS[1][:, 20, 0], torch.tensor([1.0, 0, 0]), atol=0.02)
    assert not torch.allclose(pixels_3SS[0][:, 10, 0], torch.tensor([1.0, 0, 0]), atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_activations_give_the_same_gradients(kind, folders):
    def gradients(vision, pixels_B3SS):
        vision.train()(pixels_B3SS).square().sum().backward()
        return {name: p.grad for name, p in vision.named_parameters() if p.grad is not None}

    torch.manual_seed(0)
    vision = encoder(folders[kind])
    pixels_B3SS = pixels(vision)
    plain = {name: grad.clone() for name, grad in gradients(vision, pixels_B3SS).items()}
    vision.zero_grad()
    vision.checkpoint_activations()
    runs = []
    vision._layers()[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    again = gradients(vision, pixels_B3SS)
    assert len(runs) == 2  # forward, and once more backward
    assert again.keys() == plain.keys()
    assert all(torch.allclose(again[name], plain[name], atol=1e-5) for name in plain)


@torch.no_grad()
def test_dinov3_positions_neither_change_in_training_nor_lose_precision(folders):
    vision = encoder(folders["dinov3"])
    pixels_B3SS = pixels(vision)
    assert torch.equal(vision.train()(pixels_B3SS), vision.eval()(pixels_B3SS))
    exact = vision.tower.rope_embeddings.inv_freq.clone()
    assert torch.equal(vision.bfloat16().tower.rope_embeddings.inv_freq, exact)


def test_gradients_stop_at_the_chosen_layer(folders):
    vision = encoder(folders["clip"], layer=2).train()
    vision(pixels(vision)).sum().backward()
    reached = [any(p.grad is not None for p in layer.parameters()) for layer in vision._layers()]
    assert reached == [True, True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_layers_stay_where_the_others_learn(kind, folders):
    vision = encoder(folders[kind], layer=3, frozen=2)
    above = {id(parameter) for parameter in hf.layers(vision.tower, 3)[2].parameters()}
    vision.requires_grad_(True)
    assert {id(p) for p in vision.tower.parameters() if p.requires_grad} == above
    vision.train()(pixels(vision)).square().sum().backward()
    assert {id(p) for p in vision.tower.parameters() if p.grad is not None and p.grad.any()} == above
    vision.requires_grad_(False)
    assert not any(p.requires_grad for p in vision.parameters())


@pytest.mark.parametrize("frozen", [2, 3, -1])
def test_a_layer_that_learns_is_left(frozen, folders):
    with pytest.raises(CardError) as caught:
        encoder(folders["clip"], layer=-2, frozen=frozen)
    told = f"frozen is {frozen}, and {folders['clip']} is read after 2 layers, of which one must learn"
    assert (caught.value.what, caught.value.at, caught.value.fix) == (told, "args.frozen", "frozen: 1")


def test_no_module_is_registered_twice(folders):
    """A state of the encoder names every weight once."""
    vision = encoder(folders["clip"])
    assert len(vision.state_dict()) == len({value.data_ptr() for value in vision.state_dict().values()})


def test_identity_tells_settings_that_change_labels(folders):
    clip = folders["clip"]
    encoders = [
        encoder(clip),
        encoder(clip, image_size=42),
        *(encoder(clip, dense=dense) for dense in ("value", "surgery")),
    ]
    identities = [*(vision.identity() for vision in encoders), encoder(folders["siglip"]).identity()]
    assert len(set(identities)) == len(identities)
    assert encoder(clip, fit="pad").identity() == identities[0]  # a store keeps it
    assert encoder(clip, layer=-1).identity() == identities[0]  # dense features do not depend on it


@torch.no_grad()
def test_saved_checkpoints_keep_range_text_tower_and_processor(folders, tmp_path):
    half = tmp_path / "half"
    AutoModel.from_pretrained(folders["clip"]).half().save_pretrained(half)
    for file in folders["clip"].iterdir():
        if "token" in file.name or "process" in file.name:
            shutil.copy(file, half)
    vision = encoder(half)
    assert vision.tower.dtype == torch.float16
    state = {name: value.bfloat16() for name, value in vision.state_dict().items()}
    state["tower.post_layernorm.bias"][0] = 1e6  # beyond fp16
    vision.save(tmp_path / "trained", state)
    again = encoder(tmp_path / "trained")
    assert again.tower.post_layernorm.bias[0] > 9e5
    assert torch.allclose(again.words(TEXTS), vision.words(TEXTS), atol=1e-6)
    assert torch.equal(again.pixels(picture()), vision.pixels(picture()))


def test_random_weights_need_no_weights(folders, tmp_path):
    folder = tmp_path / "config"
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(folders["clip"] / name, folder)
    assert encoder(folder, random=True).grid == (5, 5)


# what can go wrong


def test_naflex_is_refused(tmp_path):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Siglip2Model(Siglip2Config(vision_config=small, text_config={**small, "vocab_size": 9})).save_pretrained(tmp_path)
    with pytest.raises(CardError, match="NaFlex checkpoint: its grid changes") as caught:
        HFVision(str(tmp_path))
    assert "siglip2-so400m-patch14-384" in caught.value.fix


def test_unknown_architectures_are_refused(tmp_path):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTModel(ViTConfig(**small, image_size=32)).save_pretrained(tmp_path)
    with pytest.raises(CardError, match="is a vit, which this class does not know") as caught:
        HFVision(str(tmp_path))
    assert "clip_vision_model" in caught.value.fix


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(CardError, match="cannot load '/nowhere/at/all'") as caught:
        HFVision("/nowhere/at/all")
    assert "network" in caught.value.fix


@pytest.mark.parametrize("layer", [0, 4, -4])
def test_a_layer_that_is_not_there(layer, folders):
    with pytest.raises(CardError, match=f"no layer {layer} in .*, which has 3 layers") as caught:
        encoder(folders["clip"], layer=layer)
    assert caught.value.at == "args.layer"
    assert caught.value.fix == "1 to 3, or -1 (the last) to -3"


@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
def test_no_text_tower(kind, folders):
    vision = encoder(folders[kind])
    assert vision.joint == 0
    for call in (lambda: vision.both(pixels(vision)), lambda: vision.words(["dog"])):
        with pytest.raises(CardError, match="has no text tower") as caught:
            call()
        assert "CLIP or SigLIP" in caught.value.fix


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_another_size_are_refused(kind, folders):
    vision = encoder(folders[kind])
    with pytest.raises(CardError, match=r"takes images of \d+ x \d+ pixels, got 36 x 36"):
        vision(torch.zeros(1, 3, 36, 36))


def test_tokens_that_are_not_the_declared_grid_are_refused(folders):
    vision = encoder(folders["dinov2-reg"])
    vision.prefix_tokens = 1  # as if the configuration forgot its registers
    with pytest.raises(CardError, match="gives 21 tokens, not 1 and a grid of 4 x 4"):
        vision(pixels(vision))


def test_processors_must_make_squares(folders, tmp_path):
    folder = shutil.copytree(folders["siglip"], tmp_path / "wide")
    SiglipImageProcessor(size={"height": 28, "width": 56}).save_pretrained(folder)
    with pytest.raises(CardError, match=r"makes images that are not square: \{'height': 28, 'width': 56\}") as caught:
        encoder(folder)
    assert caught.value.fix == "image_size: a number of pixels"
    assert encoder(folder, image_size=28).image_size == 28
