"""Dense features of three kinds are their definitions, in loops over images, heads and patches."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel

from mmalign.errors import CardError, CheckError
from mmalign.plan import signatures
from mmalign.vision import dense
from tests.vision import test_openclip
from tests.vision.test_openclip import models  # noqa: F401
from tests.vision.tiny import encoder, pixels

LayerScale = pytest.importorskip("open_clip.transformer").LayerScale


def hf(folders, kind, **settings):
    """The encoder, transformers' hidden states, its layers by their parts, and what joins a state with the texts."""
    vision = encoder(folders["clip"], dense=kind, **settings)
    model = AutoModel.from_pretrained(folders["clip"]).eval()
    pixels_B3SS = pixels(vision)
    layers = [
        SimpleNamespace(
            norm=layer.layer_norm1, value=layer.self_attn.v_proj, out=layer.self_attn.out_proj,
            heads=layer.self_attn.num_heads, rest=lambda x, layer=layer: layer.mlp(layer.layer_norm2(x)),
        )
        for layer in vision._layers()
    ]  # fmt: skip
    hidden = model.vision_model(pixels_B3SS, output_hidden_states=True).hidden_states
    return vision, pixels_B3SS, hidden, layers, lambda x: model.visual_projection(model.vision_model.post_layernorm(x))


def native(folders, kind, model="tiny", **settings):
    vision = test_openclip.encoder(model, dense=kind, **settings)
    pixels_B3SS, tower, hidden = pixels(vision), vision.tower, []
    for block in tower.transformer.resblocks:
        block.ls_1 = LayerScale(32)
        with torch.no_grad():  # away from zeros and ones, so that nothing cancels or is skipped unseen
            for parameter in block.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    handles = [
        block.register_forward_pre_hook(lambda _, args: hidden.append(args[0])) for block in tower.transformer.resblocks
    ]
    tower.forward_intermediates(pixels_B3SS)
    [handle.remove() for handle in handles]
    layers = [
        SimpleNamespace(
            norm=block.ln_1, out=lambda x, b=block: b.ls_1(b.attn.out_proj(x)), heads=block.attn.num_heads,
            value=lambda x, a=block.attn: F.linear(x, a.in_proj_weight[64:], a.in_proj_bias[64:]),
            rest=lambda x, block=block: block.mlp(block.ln_2(x)),
        )
        for block in tower.transformer.resblocks
    ]  # fmt: skip
    return vision, pixels_B3SS, hidden, layers, lambda x: tower.ln_post(x) @ tower.proj


def of_timm(folders, kind, **settings):
    """A ViT of timm inside open_clip, with LayerScale."""
    vision = test_openclip.encoder("tiny-token", dense=kind, **settings)
    pixels_B3SS, trunk, hidden = pixels(vision), vision.tower.trunk, []
    for block in trunk.blocks:
        block.ls1 = LayerScale(64, 0.3)
    handles = [block.register_forward_pre_hook(lambda _, args: hidden.append(args[0])) for block in trunk.blocks]
    trunk.forward_features(pixels_B3SS)
    [handle.remove() for handle in handles]
    layers = [
        SimpleNamespace(
            norm=block.norm1, heads=block.attn.num_heads, out=lambda x, b=block: b.ls1(b.attn.proj(x)),
            value=lambda x, a=block.attn: F.linear(x, a.qkv.weight[128:], a.qkv.bias[128:]),
            rest=lambda x, b=block: b.ls2(b.mlp(b.norm2(x))),
        )
        for block in trunk.blocks
    ]  # fmt: skip

    def join(x):
        return vision.tower.head(trunk.forward_head(trunk.norm(x[None, None])))[0]

    return vision, pixels_B3SS, hidden, layers, join


def averaged(folders, kind, **settings):
    return native(folders, kind, "tiny-avg", **settings)


LIBRARIES = [hf, native, averaged, of_timm]


@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("library", LIBRARIES)
@torch.no_grad()
def test_value_is_the_value_path_of_the_last_layer(library, layer, folders):
    """MaskCLIP: attention gives way to value and output projection; residual and MLP stay, as in its authors' code."""
    vision, pixels_B3SS, hidden, layers, join = library(folders, "value", layer=layer)
    last, before = layers[-1], hidden[len(layers) - 1]
    _, dense_BPJ = vision.both(pixels_B3SS)
    for image in range(len(pixels_B3SS)):
        for patch in range(vision.patches):
            x = before[image, -vision.patches + patch]
            x = x + last.out(last.value(last.norm(x)))
            assert torch.allclose(dense_BPJ[image, patch], join(x + last.rest(x)), atol=1e-5)


@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("library", LIBRARIES)
@torch.no_grad()
def test_surgery_is_its_second_path(library, layer, folders):
    """CLIP Surgery: of the last layers, on the first path's states, softmax(v v^T / sqrt(d)) v; no MLP."""
    vision, pixels_B3SS, hidden, layers, join = library(folders, "surgery", layer=layer)
    first = max(1, len(layers) - 6)
    patches_BPC, dense_BPJ = vision.both(pixels_B3SS)
    for image in range(len(pixels_B3SS)):
        path_TC = hidden[first][image]
        for number in range(first, len(layers)):
            path_TC = path_TC + loop(layers[number], hidden[number][image])
        for patch in range(vision.patches):
            expected = join(path_TC[-vision.patches + patch])
            assert torch.allclose(dense_BPJ[image, patch], expected, atol=1e-5)
    assert torch.equal(patches_BPC, vision(pixels_B3SS))  # the model sees as without it


def loop(layer, hidden_TC):
    value_TC = layer.value(layer.norm(hidden_TC))
    width = value_TC.shape[1] // layer.heads
    mixed_TC = torch.zeros_like(value_TC)
    for head in range(layer.heads):
        own = slice(head * width, (head + 1) * width)
        for token in range(len(value_TC)):
            likeness_T = (value_TC[:, own] @ value_TC[token, own] / math.sqrt(width)).exp()
            mixed_TC[token, own] = likeness_T / likeness_T.sum() @ value_TC[:, own]
    return layer.out(mixed_TC)


def test_surgery_begins_six_layers_from_the_end():
    begin = {layers: dense.states_of("surgery", layers)[0] for layers in (24, 12, 7, 6, 3, 2, 1)}
    assert begin == {24: 18, 12: 6, 7: 1, 6: 1, 3: 1, 2: 1, 1: 0}
    assert dense.states_of("surgery", 12) == [6, 7, 8, 9, 10, 11]
    assert (dense.states_of("value", 12), dense.states_of("plain", 12)) == ([11], [12])


@torch.no_grad()
def test_the_last_layer_is_not_run_for_nothing(folders):
    vision, pixels_B3SS, *_ = hf(folders, "surgery", layer=2)
    calls = []
    for number, layer in enumerate(vision._layers(), 1):
        layer.register_forward_hook(lambda *_, number=number: calls.append(number))
    vision.both(pixels_B3SS)
    assert calls == [1, 2]


@pytest.mark.parametrize("library", LIBRARIES)
@torch.no_grad()
def test_bf16(library, folders):
    vision, pixels_B3SS, *_ = library(folders, "surgery")
    exact = F.normalize(vision.both(pixels_B3SS)[1], dim=-1)
    rough = vision.bfloat16().both(pixels_B3SS)[1]
    assert rough.dtype == torch.bfloat16
    assert ((F.normalize(rough.float(), dim=-1) * exact).sum(-1) > 0.999).all()


@torch.no_grad()
def test_siglip_has_values(folders):
    """What turns its pooled image into the joint space is defined for a patch alone; no paper says so."""
    vision = encoder(folders["siglip"], dense="value")
    pixels_B3SS = pixels(vision)
    last = vision._layers()[-1]
    before = AutoModel.from_pretrained(folders["siglip"]).eval().vision_model(pixels_B3SS, output_hidden_states=True)
    x = before.hidden_states[-2]
    x = x + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(x)))
    x = vision.tower.post_layernorm(x + last.mlp(last.layer_norm2(x)))
    _, dense_BPJ = vision.both(pixels_B3SS)
    for patch in range(vision.patches):
        assert torch.allclose(dense_BPJ[:, patch], vision.tower.head(x[:, patch : patch + 1]), atol=1e-5)


@torch.no_grad()
def test_value_in_bits(folders):
    """Sequences of one patch each go through the layer some at a time."""
    vision, pixels_B3SS, *_ = hf(folders, "value")
    whole = vision.both(pixels_B3SS)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "SEQUENCES", 7)
        assert torch.allclose(vision.both(pixels_B3SS)[1], whole, atol=1e-6)


# what can go wrong


def test_no_such_kind(folders):
    for make in (lambda: encoder(folders["clip"], dense="clever"), lambda: test_openclip.encoder(dense="clever")):
        with pytest.raises(CheckError, match="dense must be one of plain, value, surgery, got 'clever'"):
            make()


@pytest.mark.parametrize("target", ["mmalign.vision.hf.HFVision", "mmalign.vision.openclip.OpenCLIPVision"])
def test_check_knows_the_kinds_and_fits(target):
    for arg, right in (("dense", "surgery"), ("fit", "pad")):
        (wrong,) = signatures.mistyped(target, {arg: "clever"})
        assert wrong[0] == arg
        assert "'clever'" in wrong[1]
        assert not list(signatures.mistyped(target, {arg: right}))


def test_timm_models_have_no_words():
    assert "dense" not in signatures.takes("mmalign.vision.timm.TimmVision")


@pytest.mark.parametrize("kind", ["value", "surgery"])
def test_no_text_tower(kind, folders):
    with pytest.raises(CardError, match=f"has no dense features of the kind {kind}: it has no text tower") as caught:
        encoder(folders["dinov2"], dense=kind)
    assert caught.value.at == "args.dense"
    assert "labels from another encoder" in caught.value.fix


def test_siglip_has_no_surgery(folders):
    makes = [
        lambda: encoder(folders["siglip"], dense="surgery"),
        lambda: test_openclip.encoder("tiny-map", dense="surgery"),
    ]
    for make in makes:
        with pytest.raises(CardError, match="no dense features of the kind surgery: it pools by attention") as caught:
            make()
        assert caught.value.fix == "dense: plain or dense: value"


def test_attention_of_another_kind_has_no_surgery():
    with pytest.raises(CardError, match="kind surgery: it has attention of its own kind") as caught:
        test_openclip.encoder("tiny-rotary", dense="surgery")
    assert caught.value.fix == "dense: plain or dense: value"
