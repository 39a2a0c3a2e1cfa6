"""Encoders under ZeRO-3, where a module's weights exist only while it is called: the same numbers as without."""

import pytest
import torch

from mmalign.plan.recipe import EngineSettings as Settings
from mmalign.plan.recipe import Optim
from mmalign.training import engine as engines
from mmalign.training import optim
from mmalign.training.engine import Engine
from mmalign.vision.openclip import OpenCLIPVision
from mmalign.vision.s2 import S2
from mmalign.vision.timm import TimmVision
from tests.vision.test_openclip import models  # noqa: F401
from tests.vision.tiny import encoder, pixels

pytest.importorskip("deepspeed")


def hf(kind, **settings):
    return lambda folders: encoder(folders[kind], **settings)


MAKE = {
    "clip": hf("clip"),
    "clip-value": hf("clip", dense="value"),
    "clip-surgery": hf("clip", dense="surgery"),
    "siglip": hf("siglip"),
    "siglip-value": hf("siglip", dense="value"),
    "dinov2-reg": hf("dinov2-reg", layer=-1, norm=True),
    "dinov3": hf("dinov3"),
    "s2": lambda folders: S2(encoder(folders["clip"])),
    "timm": lambda folders: TimmVision("test_vit", random=True),
    "timm-map": lambda folders: TimmVision("test_convnext", random=True, image_size=64),
    "open_clip": lambda folders: OpenCLIPVision("tiny", random=True),
    "open_clip-surgery": lambda folders: OpenCLIPVision("tiny", random=True, dense="surgery"),
    "open_clip-timm-surgery": lambda folders: OpenCLIPVision("tiny-token", random=True, dense="surgery"),
    "open_clip-resnet-value": lambda folders: OpenCLIPVision("tiny-resnet", random=True, layer=-1, dense="value"),
    "open_clip-convnext": lambda folders: OpenCLIPVision("tiny-convnext", random=True, layer=-1),
    "open_clip-map": lambda folders: OpenCLIPVision("tiny-map", random=True),
}


class Run(torch.nn.Module):
    """Both kinds of features inside one forward pass of a module, as in a training stage."""

    def __init__(self, vision):
        super().__init__()
        self.vision = vision

    def forward(self, pixels_B3SS):
        dense = self.vision.both(pixels_B3SS)[1] if self.vision.joint else torch.zeros(1)
        return self.vision(pixels_B3SS), dense


@pytest.fixture(autouse=True)
def partitioned(monkeypatch):
    """Without this DeepSpeed leaves weights below 100,000 entries whole, and would hide what fails."""
    plain = engines.config

    def config(*args):
        config_ = plain(*args)
        config_["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return config_

    monkeypatch.setattr(engines, "config", config)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MAKE)
def test_the_same_under_zero_3(name, checkpointing, folders):
    torch.manual_seed(0)
    vision = MAKE[name](folders).train()
    pixels_B3SS = pixels(vision)
    patches, dense = Run(vision)(pixels_B3SS)
    patches.square().mean().backward()
    grads = {n: p.grad.clone() for n, p in vision.named_parameters() if p.grad is not None}
    vision.zero_grad()
    if checkpointing:
        vision.checkpoint_activations()
    for n, p in vision.named_parameters():
        p.requires_grad_(n in grads)
    run = Run(vision)
    groups = optim.groups(run.named_parameters(), Optim(lr=1e-3, weight_decay=0.0))
    engine = Engine(run, groups, Optim(lr=1e-3), Settings(zero=3), "fp32", len(pixels_B3SS), 1)
    for _ in range(2):  # the second pass follows the trace of the first
        sharded_BPC, sharded_dense = engine(pixels_B3SS)
        assert torch.allclose(sharded_BPC, patches, atol=1e-5)
        assert torch.allclose(sharded_dense, dense, atol=1e-5)
    engine.backward(sharded_BPC.square().mean())
    from deepspeed.utils import safe_get_full_grad

    for n, p in vision.named_parameters():
        if n in grads:
            assert torch.allclose(safe_get_full_grad(p), grads[n], atol=1e-5), n
