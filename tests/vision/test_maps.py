"""Encoders whose layers give maps: a stage's map is the grid, its cells in rows are the patches."""

import sys

import pytest
import torch
from torch.nn import functional as F

from mmalign.errors import CardError
from mmalign.testing import check_vision
from mmalign.testing.frames import frames_hold
from mmalign.vision.openclip import OpenCLIPVision
from mmalign.vision.s2 import S2
from mmalign.vision.timm import TimmVision
from tests.vision import test_openclip
from tests.vision.test_openclip import models  # noqa: F401
from tests.vision.tiny import picture, pixels

timm = pytest.importorskip("timm")

STAGES = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 2}
SAM = {"embed_dim": 16, "depth": 3, "num_heads": 2, "global_attn_indexes": (2,), "window_size": 2, "neck_chans": 12}
HIERA = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}


def _small(kind, like, file, **small):
    """A small model of timm's under a name of its own."""

    def entry(pretrained=False, **more):
        model = getattr(sys.modules[f"timm.models.{file}"], kind)
        return timm.models.build_model_with_cfg(model, like, pretrained, **{**small, **more}, **FILTERS.get(file, {}))

    entry.__name__ = f"mmalign_{file}"
    timm.models.register_model(entry)
    return entry.__name__


FILTERS = {"swin_transformer": {"feature_cfg": {"flatten_sequential": True}}}
__all__: list[str] = []  # to which timm adds
SWIN = _small("SwinTransformer", "swin_tiny_patch4_window7_224", "swin_transformer", **STAGES)
SAMVIT = _small("VisionTransformerSAM", "samvit_base_patch16", "vision_transformer_sam", **SAM)
HIERAS = _small("Hiera", "hiera_tiny_224", "hiera", **HIERA)
# (model, image size, layer, grid, C)
MAPS = {
    "convnext": ("test_convnext", 64, -2, 4, 48),
    "convnext-last": ("test_convnext", 96, -1, 3, 64),
    "convnext-margin": ("test_convnext", 76, -2, 4, 48),
    "resnet": ("test_resnet", 64, -2, 4, 192),
    "resnet-stem": ("test_resnet", 32, 1, 16, 32),
    "efficientnet": ("test_efficientnet", 64, -2, 4, 48),
    "swin": (SWIN, 64, -2, 4, 32),
    "swin-last": (SWIN, 128, -1, 4, 64),
    "hiera": (HIERAS, 64, -2, 4, 32),
    "sam": (SAMVIT, 64, -1, 4, 16),
}


def encoder(kind, **settings):
    torch.manual_seed(0)
    model, size, layer, *_ = MAPS[kind]
    return TimmVision(model, random=True, image_size=size, layer=layer, **settings).eval()


@pytest.mark.parametrize("kind", MAPS)
def test_grid_and_width(kind):
    _, size, _, side, width = MAPS[kind]
    vision = encoder(kind)
    assert (vision.grid, vision.dim, vision.image_size) == ((side, side), width, size)
    assert vision(pixels(vision, 1)).shape == (1, side * side, width)


@pytest.mark.parametrize("kind", ["convnext-last", "resnet", "swin-last", "hiera", "sam"])
def test_contract(kind, tmp_path):
    model, size, layer, *_ = MAPS[kind]
    again = lambda folder: TimmVision(model, checkpoint=str(folder), image_size=size, layer=layer)  # noqa: E731
    check_vision(lambda: encoder(kind), tmp_path, again)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("kind", ["convnext-margin", "swin", "resnet"])
def test_frames(kind, fit):
    frames_hold(encoder(kind, fit=fit))


@pytest.mark.parametrize("kind", ["convnext", "convnext-last", "convnext-margin", "swin", "swin-last", "hiera", "sam"])
@torch.no_grad()
def test_patch_i_is_where_patch_i_is(kind):
    """A cell whose pixels change moves its own patch most; NHWC is not taken for NCHW, nor rows for columns."""
    vision = encoder(kind)
    side = vision.image_size // vision.grid[0] if kind != "convnext-margin" else 16
    pixels_B3SS = pixels(vision, 1)
    before_BPC = vision(pixels_B3SS)
    for row, column in ((0, 0), (0, vision.grid[1] - 1), (2, 1)):
        changed_B3SS = pixels_B3SS.clone()
        changed_B3SS[..., side * row : side * (row + 1), side * column : side * (column + 1)] += 2
        moved_P = (vision(changed_B3SS) - before_BPC).norm(dim=-1)[0]
        assert int(moved_P.argmax()) == row * vision.grid[1] + column


@pytest.mark.parametrize("kind", ["convnext-last", "swin-last", "hiera", "sam"])
@torch.no_grad()
def test_patches_are_the_maps_of_timm(kind):
    vision = encoder(kind)
    maps = vision.tower.forward_intermediates(pixels(vision), intermediates_only=True)
    for patch in range(vision.patches):
        row, column = divmod(patch, vision.grid[1])
        expected = maps[vision.depth - 1][:, :, row, column]
        assert torch.allclose(vision(pixels(vision))[:, patch], expected, atol=1e-6)


@torch.no_grad()
def test_the_final_norm_of_a_last_map():
    vision = encoder("swin-last", norm=True)
    last_BHWC = vision.tower.forward_features(pixels(vision))
    assert torch.allclose(vision(pixels(vision)), last_BHWC.flatten(1, 2), atol=1e-6)
    assert encoder("sam", norm=True).dim == 12  # SAM's neck


@pytest.mark.parametrize("kind", ["swin", "convnext-last", "hiera", "resnet"])
def test_a_norm_that_is_not_there(kind):
    with pytest.raises(CardError, match=r"has no final norm behind layer \d of \d") as caught:
        encoder(kind, norm=True)
    assert (caught.value.at, caught.value.fix) == ("args.norm", "norm: false")


def test_statistics_stay_as_they_were_trained():
    """Of BatchNorm: an image's patches do not depend on its neighbours, and activations made twice count once."""
    vision = encoder("resnet").train()
    before = {name: value.clone() for name, value in vision.state_dict().items()}
    assert torch.allclose(vision(pixels(vision))[:1], vision(pixels(vision, 1)), atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in vision.state_dict().items())
    assert vision.tower.layer1.training


def test_no_layer_is_left_out():
    """timm's Swin has stochastic depth of one in ten unless told otherwise."""
    vision = encoder("swin-last").train()
    assert vision.tower.layers[3].blocks[0].drop_path1.drop_prob
    assert torch.equal(vision(pixels(vision)), vision(pixels(vision)))


@pytest.mark.parametrize("kind", ["convnext", "resnet", "swin", "hiera", "sam"])
def test_checkpointed_activations(kind):
    vision, runs = encoder(kind).train(), []
    first = next(m for m in vision.tower.modules() if type(m).__name__.endswith(("Block", "BasicBlock", "HieraBlock")))
    first.register_forward_pre_hook(lambda *_: runs.append(1))
    vision.checkpoint_activations()
    vision(pixels(vision)).sum().backward()
    assert len(runs) == 2


@torch.no_grad()
def test_s2_looks_closer_with_maps():
    vision = S2(encoder("convnext"), scales=(1, 2))
    assert vision(vision.pixels(picture())[None]).shape == (1, 16, 96)


# of open_clip

JOINED = {"convnext": ("tiny-convnext", -1, "plain", 24), "resnet": ("tiny-resnet", -1, "value", 24)}
MUTE = {"convnext-inner": ("tiny-convnext", -2, "plain", 0)}


@pytest.mark.parametrize("model", ["tiny-convnext", "tiny-resnet"])
def test_grids_of_open_clip(model):
    assert test_openclip.encoder(model, layer=-1).grid == (2, 2)
    for layer, side in ((4 if model == "tiny-resnet" else -2, 4), (1, 16)):
        vision = test_openclip.encoder(model, layer=layer)
        assert vision.grid == (side, side)
        assert vision(pixels(vision, 1)).shape == (1, side * side, vision.dim)


@pytest.mark.parametrize(("model", "layer", "dense", "joint"), (JOINED | MUTE).values(), ids=JOINED | MUTE)
def test_contract_of_open_clip(model, layer, dense, joint, tmp_path):
    test_openclip.encoder(model).save(tmp_path / "first")
    make = lambda folder: OpenCLIPVision(model, checkpoint=str(folder), layer=layer, dense=dense)  # noqa: E731
    assert make(tmp_path / "first").joint == joint
    check_vision(lambda: make(tmp_path / "first"), tmp_path, make)


@torch.no_grad()
def test_dense_of_a_convnext_is_its_head_on_each_cell_alone():
    vision = test_openclip.encoder("tiny-convnext", layer=-1)
    pixels_B3SS, trunk = pixels(vision), vision.tower.trunk
    map_BCHW = trunk.forward_features(pixels_B3SS)
    _, dense_BPJ = vision.both(pixels_B3SS)
    for patch in range(vision.patches):
        row, column = divmod(patch, 2)
        cell_BC11 = map_BCHW[:, :, row : row + 1, column : column + 1]
        expected = vision.tower.head(trunk.forward_head(cell_BC11))
        assert torch.allclose(dense_BPJ[:, patch], expected, atol=1e-5)
    one_BC11 = map_BCHW.mean((2, 3), keepdim=True)  # the same steps on the mean cell are the image's embedding
    assert torch.allclose(vision.tower.head(trunk.forward_head(one_BC11)), vision.tower(pixels_B3SS), atol=1e-5)


@torch.no_grad()
def test_dense_value_of_a_resnet_is_the_value_path_of_its_pool():
    """MaskCLIP's for ResNets: value and output projection of the attention that pools, in each cell."""
    vision = test_openclip.encoder("tiny-resnet", layer=-1, dense="value")
    pixels_B3SS, tower = pixels(vision), vision.tower
    map_BCHW = tower.layer4(tower.layer3(tower.layer2(tower.layer1(tower.stem(pixels_B3SS)))))
    patches_BPC, dense_BPJ = vision.both(pixels_B3SS)
    for patch in range(vision.patches):
        cell_BC = map_BCHW[:, :, patch // 2, patch % 2]
        value_BC = F.linear(cell_BC, tower.attnpool.v_proj.weight, tower.attnpool.v_proj.bias)
        assert torch.allclose(patches_BPC[:, patch], cell_BC, atol=1e-5)
        assert torch.allclose(dense_BPJ[:, patch], tower.attnpool.c_proj(value_BC), atol=1e-5)


@pytest.mark.parametrize("model", ["tiny-convnext", "tiny-resnet"])
def test_open_clips_maps_are_made_again_in_the_backward_pass(model):
    vision, runs = test_openclip.encoder(model).train(), []
    stage = vision.tower.layer1 if model == "tiny-resnet" else vision.tower.trunk.stages[0].blocks[0]
    stage.register_forward_pre_hook(lambda *_: runs.append(1))
    vision.checkpoint_activations()
    vision(pixels(vision)).sum().backward()
    assert len(runs) == 2


# what can go wrong


@pytest.mark.parametrize(
    ("model", "layer", "dense", "what", "fix"),
    [
        (
            "tiny-convnext",
            -2,
            "plain",
            r"has words for its last map alone, .* \(layer: -1, not -2\)",
            "another encoder",
        ),
        ("tiny-resnet", -1, "plain", "pools by attention over the whole picture", "dense: value or take labels from"),
    ],
)
def test_maps_without_words(model, layer, dense, what, fix):
    vision = test_openclip.encoder(model, layer=layer, dense=dense)
    assert vision.joint == 0
    for call in (lambda: vision.both(pixels(vision)), lambda: vision.words(["dog"])):
        with pytest.raises(CardError, match=what) as caught:
            call()
        assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("model", "dense", "what", "fix"),
    [
        ("tiny-convnext", "surgery", "it has no attention", "dense: plain"),
        ("tiny-resnet", "surgery", "it pools by attention over the whole picture", "dense: value"),
    ],
)
def test_kinds_that_maps_do_not_have(model, dense, what, fix):
    with pytest.raises(CardError, match=f"no dense features of the kind {dense}: {what}") as caught:
        test_openclip.encoder(model, layer=-1, dense=dense)
    assert (caught.value.at, caught.value.fix) == ("args.dense", fix)


def test_the_norm_of_a_map_is_behind_its_pool():
    with pytest.raises(CardError, match="the final norm of tiny-convnext is behind its pool"):
        test_openclip.encoder("tiny-convnext", norm=True)


def refused(model, **settings):
    """What is said, before any weight is loaded."""
    with pytest.MonkeyPatch.context() as patch:
        create = timm.create_model
        patch.setattr(
            timm, "create_model", lambda *args, pretrained, **more: create(*args, pretrained=guard(pretrained), **more)
        )
        with pytest.raises(CardError) as caught:
            TimmVision(model, pretrained="", checkpoint="unread", **settings)
    return caught.value


def guard(pretrained):
    assert not pretrained, "weights are asked for"
    return pretrained


def test_a_map_that_does_not_tile_the_image():
    error = refused("test_resnet", image_size=100, layer=-1)
    assert error.what == "layer 5 of test_resnet gives 4 x 4 patches of 32 pixels in an image of 100"
    assert (error.at, error.fix[:16]) == ("args.image_size", "a multiple of 32")


def test_an_image_that_the_model_cannot_take():
    error = refused(HIERAS, image_size=40)
    assert f"timm model {HIERAS!r} gives no map of an image of 40 pixels" in error.what or "cannot make" in error.what


def test_a_stage_that_is_not_there():
    error = refused("test_convnext", layer=5)
    assert error.what == "no layer 5 in test_convnext, which has 4 layers"


def test_a_model_that_tells_nothing(monkeypatch):
    class Silent(torch.nn.Module):
        pass

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: Silent())
    with pytest.raises(CardError, match="timm model 'silent' tells of none of its layers") as caught:
        TimmVision("silent", random=True)
    assert "convnext_base" in caught.value.fix


def test_a_model_that_cannot_be_read():
    with pytest.raises(CardError, match="timm model 'test_resnet' gives no map of an image of -32 pixels: ") as caught:
        TimmVision("test_resnet", random=True, image_size=-32)
    assert "another image_size" in caught.value.fix


def test_a_model_without_checkpointing(monkeypatch):
    vision = encoder("convnext")

    def refuse(enable):
        assert not enable, "gradient checkpointing not supported"

    monkeypatch.setattr(vision.tower, "set_grad_checkpointing", refuse)
    with pytest.raises(CardError, match="timm cannot make the activations of test_convnext again") as caught:
        vision.checkpoint_activations()
    assert caught.value.fix == "engine: {checkpointing: false}"


def test_weights_for_images_that_are_not_square(monkeypatch):
    monkeypatch.setattr("timm.data.resolve_model_data_config", lambda model: {"input_size": (3, 32, 64)})
    with pytest.raises(CardError, match="test_convnext was trained on images of 32 x 64"):
        TimmVision("test_convnext", random=True)
