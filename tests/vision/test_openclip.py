"""Patches and dense features are what open_clip's own parts give, for its ViTs and for timm's inside it."""

import json
import sys

import pytest
import torch

from mmalign.errors import CardError
from mmalign.testing import check_vision
from mmalign.vision.openclip import OpenCLIPVision, load
from tests.vision.tiny import picture, pixels

open_clip = pytest.importorskip("open_clip")

TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VISION = {"image_size": 24, "layers": 3, "width": 32, "head_width": 8, "patch_size": 6}
TIMM = {"image_size": 160, "timm_model_pretrained": False}
CONVNEXT = {**TIMM, "image_size": 64, "timm_model_name": "test_convnext"}
ROTARY = {**TIMM, "image_size": 224, "timm_model_name": "eva02_tiny_patch14_224"}
MODELS = {
    "tiny": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT},
    "tiny-avg": {"embed_dim": 24, "vision_cfg": {**VISION, "pool_type": "avg"}, "text_cfg": TEXT},
    "tiny-map": {  # SigLIP
        "embed_dim": 96,
        "vision_cfg": {**TIMM, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last"},
        "custom_text": True,
    },
    "tiny-token": {  # EVA-CLIP
        "embed_dim": 24,
        "vision_cfg": {**TIMM, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": None},
        "text_cfg": TEXT,
        "custom_text": True,
    },
    "tiny-rotary": {  # EVA-02
        "embed_dim": 24,
        "vision_cfg": {**ROTARY, "timm_pool": "token", "timm_proj": None},
        "text_cfg": TEXT,
        "custom_text": True,
    },
    "tiny-hub": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": {**TEXT, "hf_tokenizer_name": "mmalign/nowhere"}},
    "tiny-timm-avg": {
        "embed_dim": 24,
        "vision_cfg": {**TIMM, "timm_model_name": "test_vit4", "timm_pool": "avg", "timm_proj": "linear"},
        "text_cfg": TEXT,
        "custom_text": True,
    },
    "tiny-coca": {
        "embed_dim": 24,
        "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "attn_pooler_heads": 4},
        "custom_text": True,
    },
    "tiny-convnext": {
        "embed_dim": 24,
        "vision_cfg": {
            **TIMM,
            "image_size": 64,
            "timm_model_name": "test_convnext",
            "timm_pool": "",
            "timm_proj": "linear",
        },
        "text_cfg": TEXT,
    },
    "tiny-resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
        "text_cfg": TEXT,
    },
}
TEXTED = ("tiny", "tiny-avg", "tiny-map", "tiny-token")


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, config in MODELS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def encoder(model="tiny", **settings):
    torch.manual_seed(0)
    return OpenCLIPVision(model, random=True, **settings).eval()


def save_and_load(model, folder, **settings):
    """The encoder and open_clip's own model, of the same weights."""
    encoder(model).save(folder)
    model_ = open_clip.create_model(model)
    open_clip.load_checkpoint(model_, str(folder / "open_clip_model.safetensors"))
    return OpenCLIPVision(model, checkpoint=str(folder), **settings).eval(), model_.eval()


@pytest.mark.parametrize("model", [*TEXTED, "tiny-coca", "tiny-timm-avg"])
def test_contract(model, tmp_path):
    save_and_load(model, tmp_path / "first")
    make = lambda folder: OpenCLIPVision(model, checkpoint=str(folder))  # noqa: E731
    check_vision(lambda: make(tmp_path / "first"), tmp_path, make)


@pytest.mark.parametrize("layer", [-1, -2, 1])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("model", TEXTED)
@torch.no_grad()
def test_patches_are_open_clips(model, norm, layer, tmp_path):
    vision, reference = save_and_load(model, tmp_path, layer=layer, norm=norm)
    pixels_B3SS = pixels(vision)
    options = {"image_output_fmt": "NLC", "normalize_intermediates": norm, "normalize": False}
    hidden = reference.forward_intermediates(pixels_B3SS, **options)["image_intermediates"]
    assert torch.allclose(vision(pixels_B3SS), hidden[layer if layer < 0 else layer - 1], atol=1e-5)


@pytest.mark.parametrize("model", ["tiny", "tiny-avg"])
@torch.no_grad()
def test_dense_is_norm_and_projection_of_each_patch(model, tmp_path):
    vision, reference = save_and_load(model, tmp_path)
    pixels_B3SS = pixels(vision)
    last = reference.visual.forward_intermediates(pixels_B3SS, indices=1, output_fmt="NLC", output_extra_tokens=True)
    join = lambda x: reference.visual.ln_post(x) @ reference.visual.proj  # noqa: E731
    _, dense_BPJ = vision.both(pixels_B3SS)
    for image in range(2):
        for patch in range(vision.patches):
            expected = join(last["image_intermediates"][0][image, patch])
            assert torch.allclose(dense_BPJ[image, patch], expected, atol=1e-5)
    if model == "tiny":  # the same steps on the class token are the image's embedding
        assert torch.allclose(
            join(last["image_intermediates_prefix"][0][:, 0]), reference.encode_image(pixels_B3SS), atol=1e-5
        )
    else:  # and their mean, where the tower averages patches
        assert torch.allclose(dense_BPJ.mean(1), reference.encode_image(pixels_B3SS), atol=1e-5)


@pytest.mark.parametrize("model", ["tiny-map", "tiny-token"])
@torch.no_grad()
def test_dense_of_timm_towers_is_their_head_on_each_patch_by_itself(model, tmp_path):
    vision, reference = save_and_load(model, tmp_path)
    pixels_B3SS = pixels(vision, 1)
    trunk = reference.visual.trunk
    last = trunk.forward_features(pixels_B3SS)
    assert torch.allclose(
        reference.visual.head(trunk.forward_head(last)), reference.encode_image(pixels_B3SS), atol=1e-5
    )
    _, dense_BPJ = vision.both(pixels_B3SS)
    for patch in range(vision.patches):
        token = trunk.num_prefix_tokens + patch
        expected = reference.visual.head(trunk.forward_head(last[:, token : token + 1]))
        assert torch.allclose(dense_BPJ[:, patch], expected, atol=1e-5)


@pytest.mark.parametrize("model", TEXTED)
@torch.no_grad()
def test_words_are_the_text_towers(model, tmp_path, monkeypatch):
    vision, reference = save_and_load(model, tmp_path)
    texts = ["dog", "a photo of a red car", "red house"]
    expected = reference.encode_text(open_clip.get_tokenizer(model)(texts), normalize=True)
    assert torch.allclose(vision.words(texts), expected, atol=1e-6)
    monkeypatch.setattr("mmalign.vision.openclip.TEXTS", 2)
    assert torch.allclose(vision.words(texts), expected, atol=1e-6)


def test_images_are_prepared_by_open_clips_transform():
    _, _, transform = open_clip.create_model_and_transforms("tiny")
    assert torch.equal(encoder().pixels(picture()), transform(picture()))
    assert encoder(fit="pad").pixels(picture(80, 20))[:, 0].abs().max() < 0.02  # the margin has the mean colour


def test_layers_above_are_not_run():
    vision, calls = encoder(layer=2), []
    for number, block in enumerate(vision.tower.transformer.resblocks, 1):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    vision(pixels(vision))
    assert calls == [1, 2]


def test_other_tools_read_what_is_saved(tmp_path):
    save_and_load("tiny", tmp_path)
    loaded = open_clip.create_model(f"local-dir:{tmp_path}")
    ours = open_clip.create_model("tiny")
    open_clip.load_checkpoint(ours, str(tmp_path / "open_clip_model.safetensors"))
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in ours.state_dict().items())


def test_weights_trained_with_the_quick_gelu_get_it(monkeypatch):
    """open_clip would warn and use the other."""
    config = {"quick_gelu": True, "mean": (0.1, 0.2, 0.3)}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: config)
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda model: ["openai"])
    model = load("tiny", "openai", "", random=True)
    assert type(model.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert model.visual.preprocess_cfg["mean"] == (0.1, 0.2, 0.3)


def test_checkpointed_activations():
    vision, runs = encoder().train(), []
    vision.tower.transformer.resblocks[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    vision.checkpoint_activations()
    vision(pixels(vision)).sum().backward()
    assert len(runs) == 2


def test_identity_tells_weights_and_settings(tmp_path):
    encoder().save(tmp_path)
    vision = OpenCLIPVision("tiny", checkpoint=str(tmp_path))
    assert encoder(fit="pad").identity() == encoder().identity()  # a store keeps it
    encoders = [encoder(), encoder(dense="value"), encoder(dense="surgery"), encoder("tiny-avg"), vision]
    assert len({vision_.identity() for vision_ in encoders}) == 5


# what can go wrong


def test_no_such_model():
    with pytest.raises(CardError, match="open_clip has no model 'ViT-B-23'") as caught:
        encoder("ViT-B-23")
    assert caught.value.fix == "did you mean 'ViT-B-32'?"


def test_no_such_tag():
    with pytest.raises(CardError, match="open_clip has no weights 'laion2b' for ViT-B-32") as caught:
        OpenCLIPVision("ViT-B-32", pretrained="laion2b")
    assert "laion2b_" in caught.value.fix


def test_no_weights():
    with pytest.raises(CardError, match="open_clip model 'ViT-B-32' without weights") as caught:
        OpenCLIPVision("ViT-B-32")
    assert caught.value.fix.startswith("pretrained: one of")


def test_a_tokenizer_that_is_not_here(monkeypatch):
    """SigLIP's: open_clip downloads it when it is first used."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    vision = encoder("tiny-hub")
    with pytest.raises(CardError) as caught:
        vision.words(["dog"])
    error = caught.value
    assert error.what.startswith(
        "the text tower of open_clip's tiny-hub needs the tokenizer mmalign/nowhere, which cannot be had: "
    )
    assert "\n" not in error.what
    assert error.at == "args.model"
    assert error.fix.startswith("hf download mmalign/nowhere   (once, where the hub can be reached)")
    assert vision(pixels(vision)).shape == (2, 16, 32)  # a model that only sees needs none


def test_weights_of_another_model(tmp_path):
    encoder("tiny").save(tmp_path)
    with pytest.raises(CardError, match="cannot load open_clip model 'tiny-map'"):
        OpenCLIPVision("tiny-map", checkpoint=str(tmp_path))


@pytest.mark.parametrize(
    ("model", "reason"),
    [("tiny-coca", "tiny-coca pools with CoCa's queries"), ("tiny-timm-avg", "tiny-timm-avg pools by 'avg'")],
)
def test_towers_without_dense_features(model, reason):
    vision = encoder(model)
    assert vision.joint == 0
    for call in (lambda: vision.both(pixels(vision)), lambda: vision.words(["dog"])):
        with pytest.raises(CardError, match=reason) as caught:
            call()
        assert "another encoder" in caught.value.fix


def test_coca_has_no_final_norm_of_patches():
    with pytest.raises(CardError, match="the final norm of tiny-coca is behind its pool"):
        encoder("tiny-coca", norm=True)


def test_wrong_size():
    with pytest.raises(CardError, match="takes images of 24 x 24 pixels, got 36 x 36"):
        encoder()(torch.zeros(1, 3, 36, 36))


def test_another_number_of_patches_than_declared():
    vision = encoder()
    vision.grid = (5, 5)
    with pytest.raises(CardError, match="gives 16 patches, not a grid of 5 x 5"):
        vision(pixels(vision))


def test_open_clip_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(CardError, match="need the package open_clip_torch") as caught:
        encoder()
    assert caught.value.fix == "pip install mmalign[openclip]"
