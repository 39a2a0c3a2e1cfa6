"""Patches are what timm's own features are; weights come from tags or safetensors."""

import sys

import pytest
import torch
from safetensors.torch import save_file

from mmalign.errors import CardError
from mmalign.testing import check_vision
from mmalign.vision.timm import TimmVision
from tests.vision.tiny import picture

timm = pytest.importorskip("timm")

SMALL = ("test_vit", "test_vit2", "test_vit3", "test_vit4")  # timm's own models for tests
WITH_PREFIX = "vit_tiny_patch16_224"


def encoder(model="test_vit", **settings):
    torch.manual_seed(0)
    return TimmVision(model, random=True, **settings).eval()


@pytest.mark.parametrize("model", SMALL)
def test_contract(model, tmp_path):
    check_vision(lambda: encoder(model), tmp_path, lambda folder: TimmVision(model, checkpoint=str(folder)))


@pytest.mark.parametrize(
    ("model", "norm"),
    [
        ("vit_tiny_patch16_224", False),
        ("vit_tiny_patch16_224", True),
        ("eva02_tiny_patch14_224", False),
        ("vit_small_patch16_dinov3", False),
        ("vit_small_patch16_dinov3", True),
    ],
)
@torch.no_grad()
def test_the_last_block_is_what_timm_gives(model, norm, tmp_path):
    """Class token, rotary positions and registers: all dropped, the first patch never."""
    vision = encoder(model, layer=-1, norm=norm)
    reference = timm.create_model(model, num_classes=0)
    reference.load_state_dict(vision.tower.state_dict())
    pixels_B3SS = vision.pixels(picture())[None]
    outputs = {}
    reference.blocks[-1].register_forward_hook(lambda _m, _a, out: outputs.update(last=out))
    expected = reference.eval().forward_features(pixels_B3SS)
    hidden = expected if norm else outputs["last"]
    assert hidden.shape[1] == reference.num_prefix_tokens + vision.patches
    assert torch.allclose(vision(pixels_B3SS), hidden[:, reference.num_prefix_tokens :], atol=1e-5)


@pytest.mark.parametrize("layer", [-2, 3])
@torch.no_grad()
def test_an_inner_block(layer):
    vision = encoder("test_vit", layer=layer)
    pixels_B3SS = vision.pixels(picture())[None]
    hidden = vision.tower.forward_intermediates(pixels_B3SS, intermediates_only=True, output_fmt="NLC")
    assert torch.equal(vision(pixels_B3SS), hidden[layer if layer < 0 else layer - 1])


def test_blocks_above_are_not_run():
    vision, calls = encoder("test_vit", layer=2), []
    for number, block in enumerate(vision.tower.blocks, 1):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    vision(vision.pixels(picture())[None])
    assert calls == [1, 2]


def test_images_are_prepared_by_the_weights_configuration():
    vision = encoder("vit_small_patch14_dinov2", image_size=42)
    assert (vision.image_size, vision.grid) == (42, (3, 3))
    mean, std = (torch.tensor(vision.data_config[key])[:, None, None] for key in ("mean", "std"))
    assert torch.allclose(mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    unnormalized = vision.pixels(picture(42, 42)) * std + mean  # nothing to resize, nothing cropped
    from torchvision.transforms.functional import to_tensor

    assert torch.allclose(unnormalized, to_tensor(picture(42, 42)), atol=1e-6)


def test_padding():
    vision = encoder(fit="pad")
    wide = vision.pixels(picture(80, 20))
    mean = wide[:, 0, :]  # the upper margin has the mean colour, which is zero when normalised
    assert mean.abs().max() < 0.02


def test_checkpoints_are_files_or_folders(tmp_path):
    vision = encoder()
    pixels_B3SS = vision.pixels(picture())[None]
    vision.save(tmp_path / "folder")
    save_file(vision.tower.state_dict(), tmp_path / "weights.safetensors")
    for path in (tmp_path / "folder", tmp_path / "weights.safetensors"):
        again = TimmVision("test_vit", checkpoint=str(path)).eval()
        assert torch.equal(again(pixels_B3SS), vision(pixels_B3SS))
    assert timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).num_classes == 0


def test_a_head_in_the_weights_is_left_out(tmp_path):
    model = timm.create_model("test_vit")
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    assert not hasattr(TimmVision("test_vit", checkpoint=str(tmp_path / "w.safetensors")).tower.head, "weight")


def test_checkpointed_activations():
    vision, runs = encoder().train(), []
    vision.tower.blocks[0].attn.register_forward_pre_hook(lambda *_: runs.append(1))
    vision.checkpoint_activations()
    vision(vision.pixels(picture())[None]).sum().backward()
    assert len(runs) == 2


def test_identity_tells_weights_and_settings(tmp_path):
    vision = encoder()
    vision.save(tmp_path / "a")
    vision.save(tmp_path / "b", {name: value + 1 for name, value in vision.state_dict().items()})
    assert encoder(fit="pad").identity() == vision.identity()  # a store keeps it
    encoders = [vision, encoder(image_size=64)]
    encoders += [TimmVision("test_vit", checkpoint=str(tmp_path / name)) for name in "ab"]
    assert len({vision_.identity() for vision_ in encoders}) == 4


# what can go wrong


def test_no_weights():
    with pytest.raises(CardError, match="timm model 'test_vit' without weights") as caught:
        TimmVision("test_vit")
    assert "pretrained: a tag" in caught.value.fix


def test_no_such_model():
    with pytest.raises(CardError, match="cannot make timm model 'vit_gigantic': Unknown model") as caught:
        encoder("vit_gigantic")
    assert "timm.list_pretrained()" in caught.value.fix


def test_no_such_tag():
    with pytest.raises(CardError, match=r"cannot make timm model 'test_vit.nosuch'"):
        TimmVision("test_vit", pretrained="nosuch")


def test_a_norm_that_is_not_there():
    """Of a model that averages patches before it norms them."""
    with pytest.raises(CardError, match="'eva02_tiny_patch14_224' has no final norm behind layer 11 of 12") as caught:
        encoder("eva02_tiny_patch14_224", norm=True)
    assert (caught.value.at, caught.value.fix) == ("args.norm", "norm: false")


def test_wrong_size():
    vision = encoder()
    with pytest.raises(CardError, match="takes images of 160 x 160 pixels, got 64 x 64"):
        vision(torch.zeros(1, 3, 64, 64))


def test_another_grid_than_declared():
    vision = encoder()
    vision.grid = (9, 9)
    with pytest.raises(CardError, match=r"gives a grid of \(10, 10\), not of \(9, 9\)"):
        vision(vision.pixels(picture())[None])


@pytest.mark.parametrize(
    ("name", "message"),
    [("gone", "no checkpoint .*gone"), ("w.bin", "no weights in .*w.bin"), ("empty", "no weights in .*empty")],
)
def test_checkpoints_that_cannot_be_used(name, message, tmp_path):
    (tmp_path / "w.bin").write_bytes(b"pickle")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CardError, match=message) as caught:
        TimmVision("test_vit", checkpoint=str(tmp_path / name))
    assert caught.value.at == "args.checkpoint"
    assert name == "gone" or "pickles are never loaded" in caught.value.fix


def test_timm_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CardError, match="need the package timm") as caught:
        encoder()
    assert caught.value.fix == "pip install mmalign[timm]"
